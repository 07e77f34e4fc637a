"""transformers' `generate` as a method, for `HeliumForCausalLM` to inherit."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import mlx.core as mx

from helium_mlx.checkpoint.generation_config import GenerationConfig
from helium_mlx.kv_cache.cache import KVCache
from helium_mlx.model.interfaces import GenerativeModel, Streamer
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

if TYPE_CHECKING:
    from helium_mlx.model.processors import AllowedTokens, Processor
    from helium_mlx.model.stopping import Criterion


class GenerationMixin:
    """What a model that generates has beside its forward pass."""

    def generate(
        self: GenerativeModel,
        inputs: mx.array | None = None,
        generation_config: GenerationConfig | dict[str, object] | None = None,
        *,
        input_ids: mx.array | None = None,
        inputs_embeds: mx.array | None = None,
        attention_mask: mx.array | None = None,
        past_key_values: list[KVCache] | None = None,
        negative_prompt_ids: mx.array | None = None,
        negative_prompt_attention_mask: mx.array | None = None,
        logits_processor: "Sequence[Processor] | None" = None,
        prefix_allowed_tokens_fn: "AllowedTokens | None" = None,
        stopping_criteria: "Sequence[Criterion] | None" = None,
        assistant_model: GenerativeModel | None = None,
        streamer: Streamer | None = None,
        tokenizer: HeliumTokenizer | None = None,
        seed: int | None = None,
        **options: object,
    ) -> mx.array:
        """Return the prompts and their continuations, int32 (B * num_return_sequences, L + new), as transformers does.

        `inputs` (or `input_ids`): (B, L), padded on the left where rows differ in length, with `attention_mask` (B, L).
        `inputs_embeds` (B, L, hidden_size) is what the model is given in their place; without ids beside it, only what
        is new is returned. `assistant_model`, a smaller Helium of the same tokenizer, guesses ahead for one row, as
        `prompt_lookup_num_tokens` does from the text: the same ids, sooner where guesses are right.

        `past_key_values` holds what the prompt begins with, and is extended. `streamer` is given the prompt and each
        step's ids; `tokenizer` is for `stop_strings`. Without a `seed`, sampling differs from call to call.

        Functions of your own: each `logits_processor` is given the ids so far (B, L) and float32 scores
        (B, vocab_size), and returns scores; each `stopping_criteria` is given the ids, and the scores if those are
        returned, and says which rows end, (B,), or whether all do; `prefix_allowed_tokens_fn` is given a prompt's
        number and a row's ids, and returns the ids that may follow. With any of them each token is waited for before
        the next is begun.

        With `return_dict_in_generate=True` comes a `GenerateDecoderOnlyOutput` instead, or of beams a
        `GenerateBeamDecoderOnlyOutput`, which has the ids as `sequences`.

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
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            negative_prompt_ids=negative_prompt_ids,
            negative_prompt_attention_mask=negative_prompt_attention_mask,
            logits_processor=logits_processor,
            prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
            stopping_criteria=stopping_criteria,
            assistant_model=assistant_model,
            streamer=streamer,
            tokenizer=tokenizer,
            seed=seed,
            **options,
        )

    def compute_transition_scores(
        self,
        sequences: mx.array,
        scores: Sequence[mx.array],
        beam_indices: mx.array | None = None,
        normalize_logits: bool = False,
    ) -> mx.array:
        """Return the score of each new id of `generate`'s outputs, (B, new); log-probabilities if normalized."""
        from helium_mlx.model.generate_outputs import transition_scores

        return transition_scores(sequences, scores, beam_indices, normalize_logits=normalize_logits)
