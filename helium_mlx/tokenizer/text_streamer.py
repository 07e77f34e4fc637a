"""`TextStreamer`: prints what `HeliumForCausalLM.generate` generates while it is generated.

It shows text as soon as no later token can change it, often letters of a word, where transformers' class of the same
name waits for the space after it. The whole text is what `decode` gives; transformers' streamer begins anew after
each newline, and so loses the space that Helium's tokenizer puts there. Special tokens are left out unless asked for,
as in `HeliumTokenizer.decode`.
"""

from typing import cast

import mlx.core as mx

from helium_mlx.errors import GenerationError
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer


class TextStreamer:
    """Prints one row's text to standard output; a subclass can do else with it in `on_finalized_text`."""

    def __init__(
        self, tokenizer: HeliumTokenizer, skip_prompt: bool = False, *, skip_special_tokens: bool = True
    ) -> None:
        self.tokenizer = tokenizer
        self.skip_prompt = skip_prompt
        self._detokenizer = tokenizer.detokenizer(skip_special_tokens=skip_special_tokens)
        self._prompt_comes = True

    def put(self, value: mx.array) -> None:
        """Take ids: first the prompt's, (1, L), then one of each step, (1,)."""
        if value.ndim > 1 and value.shape[0] > 1:
            raise GenerationError(
                f"a TextStreamer shows one text; {value.shape[0]} rows came: generate one, or leave it"
            )
        is_prompt, self._prompt_comes = self._prompt_comes, False
        if is_prompt and self.skip_prompt:
            return
        tokens = cast(list[int], value.reshape(-1).tolist())
        self.on_finalized_text("".join(self._detokenizer.add_token(token) for token in tokens))

    def end(self) -> None:
        """Show what was held back, and end the line."""
        self._prompt_comes = True
        self.on_finalized_text(self._detokenizer.finish(), stream_end=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print `text`, with a newline after the last."""
        print(text, flush=True, end="\n" if stream_end else "")
