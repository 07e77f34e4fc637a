"""Tokens guessed ahead, and checked many in one pass: by what the text repeats, or by a smaller model.

What comes out is what would have come out one token at a time: a guess is taken where it is what the model chooses
there. transformers draws by the odds of both models; here the model draws by its own, and a guess is taken where it is
what was drawn, which is distributed the same.
"""

from typing import Protocol, cast

import mlx.core as mx

from helium_mlx.errors import ArgumentError, GenerationError
from helium_mlx.kv_cache.make import make_cache
from helium_mlx.model.generate_options import GenerationOptions
from helium_mlx.model.interfaces import GenerativeModel, Streamer
from helium_mlx.model.processors import LogitsProcessorList
from helium_mlx.model.prompt_rows import Forward, PromptRows
from helium_mlx.model.sound_logits import are_sound, require_sound
from helium_mlx.model.stopping import Stopping


class Drafter(Protocol):
    """What guesses ahead."""

    def draft(self, ids: list[int], room: int) -> list[int]:
        """Return what may follow `ids`, at most `room` of it."""
        ...

    def learn(self, guessed: int, accepted: int) -> None:
        """Learn how many of the last guesses were right."""
        ...


class PromptLookup:
    """Guesses that what followed the last few ids where they came first follows again."""

    def __init__(self, count: int, longest: int) -> None:
        self.count = count
        self.longest = longest

    def draft(self, ids: list[int], room: int) -> list[int]:
        """Return up to `count` ids that followed the longest end of `ids` that was there before."""
        for size in range(min(self.longest, len(ids) - 1), 0, -1):
            end = ids[-size:]
            for start in range(len(ids) - size):
                if ids[start : start + size] == end:
                    return ids[start + size : start + size + min(self.count, room)]
        return []

    def learn(self, guessed: int, accepted: int) -> None:
        """Do nothing: it remembers nothing."""


class Assistant:
    """A smaller model of the same vocabulary, which guesses the ids that it finds most probable."""

    def __init__(self, model: GenerativeModel, prompt: PromptRows, count: int, schedule: str) -> None:
        self.forward = Forward(model, PromptRows(prompt.ids, 0, prompt.mask, prompt.positions, make_cache(model)))
        self.count = count
        self.schedule = schedule
        self._held = 0

    def draft(self, ids: list[int], room: int) -> list[int]:
        """Return the most probable ids."""
        drafted, new = mx.array([ids], mx.int32), len(ids) - self._held
        for _ in range(min(self.count, room)):
            token = mx.argmax(self.forward.several(drafted, new, 1)[:, 0], axis=-1, keepdims=True)
            drafted, new = mx.concatenate([drafted, token.astype(mx.int32)], axis=1), 1
            self._held = drafted.shape[1] - 1
        return cast(list[int], drafted[0, len(ids) :].tolist())

    def learn(self, guessed: int, accepted: int) -> None:
        """Forget the guesses that were wrong, and guess more or fewer after that."""
        if not guessed:
            return
        # The last guess is not in the cache.
        wrong = max(guessed - 1 - accepted, 0)
        for cache in self.forward.prompt.cache or []:
            cache.trim(wrong)
        self._held -= wrong
        if self.schedule != "constant":
            self.count = self.count + 2 if accepted == guessed else max(1, self.count - 1)


def make_drafter(options: GenerationOptions, prompt: PromptRows, model: GenerativeModel, assistant: object) -> Drafter:
    """Return what guesses ahead for a call. Raises GenerationError for a call that cannot have it."""
    name = "assistant_model" if assistant is not None else "prompt_lookup_num_tokens"
    if prompt.ids.shape[0] != 1:
        raise GenerationError(f"{name} is for one row; {prompt.ids.shape[0]} are generated: leave it out")
    if prompt.embeds is not None or prompt.cache is None or options.is_guided or options.returns_layers:
        raise GenerationError(
            f"{name} cannot go with inputs_embeds, use_cache=False, guidance_scale, output_attentions or "
            "output_hidden_states; leave it out"
        )
    if not all(cache.is_trimmable for cache in prompt.cache):
        raise GenerationError(f"{name} needs a cache that can forget the last tokens; leave out past_key_values")
    if assistant is None:
        return PromptLookup(options.prompt_lookup, options.longest_ngram)
    if not hasattr(assistant, "body") or not hasattr(assistant, "logits"):
        raise ArgumentError(f"assistant_model is {type(assistant).__name__}; expected a HeliumForCausalLM")
    smaller = cast(GenerativeModel, assistant)
    if smaller.config.vocab_size != model.config.vocab_size:
        raise ArgumentError(
            f"assistant_model has vocab_size {smaller.config.vocab_size}, and the model {model.config.vocab_size}; "
            "both must have the same tokenizer"
        )
    return Assistant(smaller, prompt, options.num_assistant_tokens, options.assistant_schedule)


def decode_drafted(
    forward: Forward,
    options: GenerationOptions,
    process: LogitsProcessorList,
    stopping: Stopping,
    streamer: Streamer | None,
    key: mx.array,
    drafter: Drafter,
) -> mx.array:
    """Return prompt and continuation, (1, L)."""
    ids, record = cast(list[list[int]], forward.prompt.ids.tolist())[0], forward.record
    if streamer is not None:
        streamer.put(forward.prompt.ids)
    new, is_done = forward.prompt.new, False
    while not is_done:
        drafts = drafter.draft(ids, options.max_length - len(ids) - 1)
        drafted = mx.array([ids + drafts], mx.int32)
        logits = forward.several(drafted, new + len(drafts), len(drafts) + 1)
        rows = [logits[:, place] for place in range(len(drafts) + 1)]
        scores = [process(drafted[:, : len(ids) + place], row) for place, row in enumerate(rows)]
        key, *keys = mx.random.split(key, len(rows) + 1)
        chosen = _chosen(mx.concatenate(scores), keys, options)
        sound = are_sound(logits) | options.replaces_invalid
        mx.async_eval(chosen, sound)
        tokens = cast(list[int], chosen.tolist())
        accepted = next((i for i, (a, b) in enumerate(zip(drafts, tokens, strict=False)) if a != b), len(drafts))
        require_sound(sound[0, : accepted + 1])
        begun = len(ids)
        for place in range(accepted + 1):
            ids.append(tokens[place])
            if record is not None:
                record.add_step(rows[place], scores[place])
            if streamer is not None:
                streamer.put(mx.array([ids[-1]], mx.int32))
            so_far = None if record is None else record.scores_so_far
            is_done = ids[-1] in options.eos or len(ids) >= options.max_length
            if stopping.asks:
                is_done |= cast(bool, stopping.ended(mx.array([ids], mx.int32), so_far).item())
            if is_done:
                break
        # The last token is not in the cache.
        wrong = begun + len(drafts) - (len(ids) - 1)
        for cache in forward.prompt.cache or []:
            cache.trim(wrong)
        drafter.learn(len(drafts), accepted)
        new = 1
    if streamer is not None:
        streamer.end()
    return mx.array([ids], mx.int32)


def _chosen(scores: mx.array, keys: list[mx.array], options: GenerationOptions) -> mx.array:
    """Return an id for each position of scores (K, vocab_size), (K,)."""
    if not options.do_sample:
        return mx.argmax(scores, axis=-1)
    return mx.concatenate([mx.random.categorical(scores[i : i + 1], key=key) for i, key in enumerate(keys)])
