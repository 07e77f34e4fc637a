"""transformers' `model.generate` for one or several rows: what `HeliumForCausalLM.generate` runs.

Rows advance together, a token a step, through one cache; a row that has ended is filled with the pad id until all
have. Greedy ids are transformers', padded rows and the order of its logits processors included. What deviates:

- A seed belongs to the call, since MLX has no global one to set: the same seed, another draw than torch's.
- Stop strings are looked for in the bytes of the tokens, which is what transformers' tables come to.
- While a token is read, the next is being computed, unless stop strings, a time limit, functions or a cache of the
  caller's are given: those need each token before the next.

What of `generate` is not here is refused (see `generate_options.py`).
`generation/streaming.py` has the other way to generate: one text, streamed, with statistics.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import mlx.core as mx

from helium_mlx.checkpoint.generation_config import GenerationConfig
from helium_mlx.errors import ArgumentError, GenerationError
from helium_mlx.kv_cache.cache import KVCache
from helium_mlx.model import argument_checks
from helium_mlx.model.generate_options import GenerationOptions, Settings, checked, listed
from helium_mlx.model.guidance import Unconditional
from helium_mlx.model.interfaces import GenerativeModel, Streamer
from helium_mlx.model.processors import AllowedTokens, Call, LogitsProcessorList, Processor, is_one_of, make_processors
from helium_mlx.model.prompt_rows import Forward, PromptRows, prepare
from helium_mlx.model.sound_logits import are_sound, require_sound
from helium_mlx.model.stopping import Criterion, Stopping, StopSequences
from helium_mlx.option_values import require_whole
from helium_mlx.process import require_not_forked
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer


def generate(
    model: GenerativeModel,
    inputs: mx.array | None = None,
    generation_config: GenerationConfig | dict[str, object] | None = None,
    *,
    input_ids: mx.array | None = None,
    inputs_embeds: mx.array | None = None,
    attention_mask: mx.array | None = None,
    past_key_values: list[KVCache] | None = None,
    negative_prompt_ids: mx.array | None = None,
    negative_prompt_attention_mask: mx.array | None = None,
    logits_processor: Sequence[Processor] | None = None,
    prefix_allowed_tokens_fn: AllowedTokens | None = None,
    stopping_criteria: Sequence[Criterion] | None = None,
    assistant_model: object = None,
    streamer: Streamer | None = None,
    tokenizer: HeliumTokenizer | None = None,
    seed: int | None = None,
    **options: object,
) -> mx.array:
    """Return prompt and continuation; see `GenerationMixin.generate`."""
    require_not_forked("generate there")
    config = model.config
    settings = Settings(
        model.generation_config,
        generation_config,
        options,
        vocab_size=config.vocab_size,
        context=config.max_position_embeddings,
    )
    if seed is not None:
        seed = require_whole("seed", seed, 0, 2**64 - 1, allowed="a whole number from 0 to 2^64 - 1")
    ids, embedded = _prompt_ids(inputs, input_ids, inputs_embeds, settings), 0
    if inputs_embeds is None:
        argument_checks.check_inputs(config, None, ids, None, None, None, None)
    else:
        ids, embedded = _beside_embeds(model, ids, inputs_embeds)
    chosen = settings.for_prompt(ids.shape[1], embedded)
    if inputs_embeds is not None:
        # As in transformers: what they stand for has to be remembered, and has no ids to go by.
        without = dict.fromkeys(("encoder_repetition_penalty", "encoder_no_repeat_ngram_size"))
        chosen = replace(chosen, use_cache=True, processors={**chosen.processors, **without})
    own: dict[str, object] = {
        "logits_processor": listed("logits_processor", logits_processor),
        "prefix_allowed_tokens_fn": checked("prefix_allowed_tokens_fn", prefix_allowed_tokens_fn),
    }
    criteria = listed("stopping_criteria", stopping_criteria)
    stopping = Stopping(StopSequences(chosen.stop_strings, tokenizer), chosen.max_time, criteria)
    prompt = prepare(model, ids, attention_mask, past_key_values, chosen, inputs_embeds)
    unconditional = None
    if chosen.is_guided:
        negative = check_negative_prompt(model, prompt.ids, negative_prompt_ids, negative_prompt_attention_mask)
        unconditional = Unconditional(model, *negative, use_cache=chosen.use_cache)
    process = make_processors({**chosen.processors, **own}, call_of(prompt, chosen, unconditional))
    forward = Forward(model, prompt, chosen.record(), chosen.prefill_chunk_size)
    key = mx.random.key(secrets.randbits(64) if seed is None else seed)
    if chosen.num_beams > 1:
        # Few calls search with them.
        from helium_mlx.model.beams import search

        if streamer is not None:
            raise GenerationError("streamer came, and num_beams is above 1; what beams find is known at the end only")
        return cast(mx.array, search(forward, chosen, process, stopping, key))
    if assistant_model is not None or chosen.prompt_lookup:
        from helium_mlx.model.assisted import decode_drafted, make_drafter

        drafter = make_drafter(chosen, prompt, model, assistant_model)
        ids = decode_drafted(forward, chosen, process, stopping, streamer, key, drafter)
        return _with_record(forward, ids)
    # What has to see each token, or is called for each of them, has to have it before the next.
    ahead = past_key_values is None and forward.record is None and not stopping.asks and not any(own.values())
    ids = _decode(BatchDecoder(forward, chosen, process, key), stopping, streamer, ahead=ahead)
    return _with_record(forward, ids)


def _with_record(forward: Forward, ids: mx.array) -> mx.array:
    # Typed as what nearly every call returns.
    return ids if forward.record is None else cast(mx.array, forward.record.output(ids, forward.prompt.cache))


def call_of(prompt: PromptRows, options: GenerationOptions, unconditional: Unconditional | None = None) -> Call:
    """Return what processors know of a call."""
    return Call(
        prompt=prompt.ids,
        eos=options.eos,
        max_length=options.max_length,
        do_sample=options.do_sample,
        left_padding=None if prompt.mask is None else mx.argmax(prompt.mask, axis=1),
        rows_each=options.rows_each,
        # Of the tokens that a filter leaves to beams, one at least does not end the text.
        least_kept=1 if options.num_beams == 1 else max(2, len(options.eos) + 1),
        unconditional=unconditional,
        is_begun_by_bos=options.processors.get("forced_bos_token_id") is not None,
    )


@dataclass(frozen=True)
class DecodedStep:
    """The ids so far, (B, L), the last column of them new: perhaps still being computed.

    `unfinished`: which rows continue, (B,). `sound`: of which rows the last id may be believed, (B,). `drawable`: of
    which rows there was anything left to draw, (B,), where the settings may leave nothing.
    """

    ids: mx.array
    unfinished: mx.array
    sound: mx.array
    drawable: mx.array | None


class BatchDecoder:
    """The rows of one call on their way through the model."""

    def __init__(
        self, forward: Forward, options: GenerationOptions, process: LogitsProcessorList, key: mx.array
    ) -> None:
        self.forward = forward
        self.prompt = forward.prompt
        self.options = options
        self.process = process
        self.key = key

    def first(self) -> DecodedStep:
        """Start computing the first token."""
        ids = self.prompt.ids
        return self._sampled(ids, mx.ones(ids.shape[0], mx.bool_), self.forward.first())

    def after(self, step: DecodedStep) -> DecodedStep:
        """Start computing the token after `step`, which may still be being computed."""
        return self._sampled(step.ids, step.unfinished, self.forward.next(step.ids))

    def _sampled(self, ids: mx.array, unfinished: mx.array, logits: mx.array) -> DecodedStep:
        scores = self.process(ids, logits)
        if self.forward.record is not None:
            self.forward.record.add_step(logits, scores)
        if self.options.do_sample:
            self.key, key = mx.random.split(self.key)
            tokens = mx.random.categorical(scores, key=key)
        else:
            tokens = mx.argmax(scores, axis=-1)
        tokens = tokens.astype(mx.int32)
        # What a row computes after its end is not used.
        sound = are_sound(logits) | (True if self.options.replaces_invalid else ~unfinished)
        drawable = are_sound(scores) | ~unfinished if self.options.do_sample and self.process.may_leave_none else None
        if self.options.eos and self.options.pad is not None:
            # Only where there is an eos: else rows that a stop string ended continue until all end, as in transformers.
            tokens = mx.where(unfinished, tokens, self.options.pad)
            unfinished = unfinished & ~is_one_of(tokens, self.options.eos)
        step = DecodedStep(mx.concatenate([ids, tokens[:, None]], axis=1), unfinished, sound, drawable)
        mx.async_eval(step.ids, step.unfinished, step.sound, *([] if drawable is None else [drawable]))
        return step


def _decode(batch: BatchDecoder, stopping: Stopping, streamer: Streamer | None, *, ahead: bool) -> mx.array:
    if streamer is not None:
        streamer.put(batch.prompt.ids)
    step, record = batch.first(), batch.forward.record
    while True:
        more = step.ids.shape[1] < batch.options.max_length
        following = batch.after(step) if more and ahead else None
        require_sound(step.sound)
        require_drawable(step.drawable)
        if streamer is not None:
            streamer.put(step.ids[:, -1])
        scores = None if record is None else record.scores_so_far
        unfinished = step.unfinished & ~stopping.ended(step.ids, scores) if stopping.asks else step.unfinished
        if not more or not cast(bool, unfinished.any().item()):
            break
        step = following or batch.after(replace(step, unfinished=unfinished))
    if streamer is not None:
        streamer.end()
    return step.ids


def require_drawable(drawable: mx.array | None) -> None:
    """Raise GenerationError where processors left a row nothing to draw."""
    if drawable is not None and not cast(bool, drawable.all().item()):
        raise GenerationError("the processors of logits rule out every token of a row; leave one at least")


def check_negative_prompt(
    model: GenerativeModel, ids: mx.array, negative: mx.array | None, mask: mx.array | None
) -> tuple[mx.array | None, mx.array | None]:
    """Return the negative prompt, a row for each of `ids`, and its mask. Raises ArgumentError for others."""
    if negative is None:
        if mask is not None:
            raise ArgumentError("negative_prompt_attention_mask came without negative_prompt_ids; give both")
        return None, None
    argument_checks.check_inputs(model.config, None, negative, None, mask, None, None)
    if negative.shape[0] != ids.shape[0]:
        raise ArgumentError(
            f"negative_prompt_ids has {negative.shape[0]} rows; {ids.shape[0]} are generated: give one for each"
        )
    return negative.astype(mx.int32), None if mask is None else mask.astype(mx.int32)


def _beside_embeds(model: GenerativeModel, ids: mx.array, embeds: mx.array) -> tuple[mx.array, int]:
    """Return the ids that stand for what embeddings mean, none where none came, and how many have none."""
    argument_checks.check_inputs(model.config, None, None, embeds, None, None, None)
    if ids.size == 0:
        return mx.zeros((embeds.shape[0], 0), mx.int32), embeds.shape[1]
    argument_checks.check_inputs(model.config, None, ids, None, None, None, None)
    if ids.shape != embeds.shape[:2]:
        raise ArgumentError(f"input_ids has shape {ids.shape}; beside inputs_embeds expected {embeds.shape[:2]}")
    return ids, 0


def _prompt_ids(
    inputs: mx.array | None, input_ids: mx.array | None, embeds: mx.array | None, settings: Settings
) -> mx.array:
    if inputs is not None and input_ids is not None:
        raise ArgumentError("both inputs and input_ids came; they are the same argument: give one")
    ids = input_ids if inputs is None else inputs
    if ids is not None:
        return ids
    if embeds is not None:
        return mx.zeros((1, 0), mx.int32)
    if settings.bos is None:
        raise ArgumentError("neither input_ids nor a bos_token_id, which could stand for them, is there; give one")
    return mx.array([[settings.bos]], mx.int32)
