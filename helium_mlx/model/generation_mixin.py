"""transformers' `generate` as a method, for `HeliumForCausalLM` to inherit."""

import mlx.core as mx

from helium_mlx.checkpoint.generation_config import GenerationConfig
from helium_mlx.kv_cache.cache import KVCache
from helium_mlx.model.interfaces import GenerativeModel, Streamer
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer


class GenerationMixin:
    """What a model that generates has beside its forward pass."""

    def generate(
        self: GenerativeModel,
        inputs: mx.array | None = None,
        generation_config: GenerationConfig | dict[str, object] | None = None,
        *,
        input_ids: mx.array | None = None,
        attention_mask: mx.array | None = None,
        past_key_values: list[KVCache] | None = None,
        streamer: Streamer | None = None,
        tokenizer: HeliumTokenizer | None = None,
        seed: int | None = None,
        **options: object,
    ) -> mx.array:
        """Return the prompts and their continuations, int32 (B * num_return_sequences, L + new), as transformers does.

        `inputs` (or `input_ids`): (B, L), padded on the left where rows differ in length, with `attention_mask` (B, L).
        `past_key_values` holds what the prompt begins with, and is extended. `streamer` is given the prompt and each
        step's ids; `tokenizer` is for `stop_strings`. Without a `seed`, sampling differs from call to call.

        `options` are fields of `GenerationConfig`, and come before `generation_config` and the model's own. Those of
        transformers' `generate` that are not among them raise GenerationError, one line with the name.
        """
        # Imported here: a model is loaded, and streams, without it.
        from helium_mlx.model.generate import generate

        return generate(
            self,
            inputs,
            generation_config,
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            streamer=streamer,
            tokenizer=tokenizer,
            seed=seed,
            **options,
        )
