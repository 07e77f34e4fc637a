import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import cast

import mlx.core as mx
import pytest
from passes import Passes

from helium_mlx.checkpoint.config import HeliumConfig
from helium_mlx.errors import GenerationError
from helium_mlx.generation.completion import DecodedToken
from helium_mlx.generation.ngram_index import NgramIndex
from helium_mlx.generation.prompt_lookup import (
    PATIENCE,
    SHORTEST_MATCH,
    DraftPolicy,
    LookupDecoding,
    check_draft_tokens,
)
from helium_mlx.generation.sampling import Sampler, SamplingOptions
from helium_mlx.generation.streaming import Decoding, prefill
from helium_mlx.kv_cache.cache import KVCache
from helium_mlx.kv_cache.make import make_cache
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

Demo = tuple[HeliumForCausalLM, HeliumTokenizer]
Propose = Callable[[int], list[int]]

GREEDY = SamplingOptions()
SAMPLED = SamplingOptions(temperature=1.0, seed=3)
# ruff: noqa: RUF001
STORY = (
    "At six o’clock, Oliver and Arthur met in the mill. It was Arthur’s birthday, and Oliver had a red clock for "
    "Arthur. Oliver hid the clock in the cellar and said softly: “Wait and see, wait and see!”\n Then Ivy came and "
    "asked: “What are you hiding in the cellar?” Oliver smiled and said: “Wait and see, wait and see!”\n In the "
    "evening, Arthur and Ivy went to the cellar and found the red clock. “A red clock for me? Thank you, Oliver!” said "
    "Arthur. Ivy laughed and said to Oliver: “Wait and see, wait and see!” And so ends the story of Oliver, Arthur and "
    "the red clock."
)


@pytest.fixture(scope="module")
def tiny() -> HeliumForCausalLM:
    """Two random layers over 8 tokens, with probabilities far from even."""
    config = HeliumConfig(
        vocab_size=8, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=256, initializer_range=0.5,
    )  # fmt: skip
    mx.random.seed(0)
    model = HeliumForCausalLM(config)
    mx.eval(model.parameters())
    return model


def sampler_for(model: HeliumForCausalLM, prompt: Sequence[int], options: SamplingOptions) -> Sampler:
    return Sampler(options, mx.array(list(prompt), dtype=mx.int32), vocab_size=model.config.vocab_size)


def plain(
    model: HeliumForCausalLM, prompt: list[int], count: int, options: SamplingOptions, top: int = 0
) -> list[DecodedToken]:
    cache = make_cache(model)
    decoding = Decoding(model, cache, sampler_for(model, prompt, options), top)
    return list(decoding.tokens(prefill(model, prompt, cache, step_size=512), count))


class Forced(NgramIndex):
    """Proposes what it is told to, whatever the text."""

    def __init__(self, prompt: Sequence[int], propose: Propose) -> None:
        super().__init__(prompt)
        self.start = len(self.tokens)
        self.propose = propose

    def continuation(self, length: int) -> list[int]:
        return self.propose(len(self.tokens) - self.start)[:length]


class AlwaysDrafts(DraftPolicy):
    """Drafts as much as it may at every step, whatever becomes of it."""

    def learn(self, drafted: int, accepted: int) -> None:
        self.required, self.length = 0, self.limit


class Run:
    """One text with lookups: its tokens, its decoding, and the lengths of the forward passes behind the prefill."""

    def __init__(
        self,
        model: HeliumForCausalLM,
        prompt: list[int],
        count: int,
        options: SamplingOptions = GREEDY,
        *,
        top: int = 0,
        draft_tokens: int = 8,
        propose: Propose | None = None,
        stop_after: int | None = None,
        cache: list[KVCache] | None = None,
    ) -> None:
        self.cache = make_cache(model) if cache is None else cache
        self.decoding = LookupDecoding(
            model, self.cache, sampler_for(model, prompt, options), top, prompt=prompt, draft_tokens=draft_tokens
        )
        if propose is not None:
            self.decoding.index = Forced(prompt, propose)
            self.decoding.policy = AlwaysDrafts(draft_tokens)
            self.decoding.policy.learn(0, 0)
        stream = self.decoding.tokens(prefill(model, prompt, self.cache, step_size=512), count)
        self.decoded = list(itertools.islice(stream, stop_after))

    @property
    def ids(self) -> list[int]:
        return [decoded.token for decoded in self.decoded]


def ids(decoded: list[DecodedToken]) -> list[int]:
    return [token.token for token in decoded]


def copied_story(tokenizer: HeliumTokenizer) -> list[int]:
    """The story, and its first half again."""
    story = tokenizer.encode(STORY)
    return [*story, tokenizer.eos_token_ids[0], *story[: len(story) // 2]]


@pytest.mark.parametrize("draft_tokens", [1, 2, 8])
def test_greedy_ids_on_text_that_repeats_are_those_of_plain_decoding(demo: Demo, draft_tokens: int) -> None:
    prompt = copied_story(demo[1])
    run = Run(demo[0], prompt, 70, draft_tokens=draft_tokens)
    assert run.ids == ids(plain(demo[0], prompt, 70, GREEDY))
    assert run.decoding.accepted > 10


def test_greedy_ids_on_text_without_repeats_are_those_of_plain_decoding(demo: Demo) -> None:
    prompt = demo[1].encode("Once upon a time")
    assert Run(demo[0], prompt, 100).ids == ids(plain(demo[0], prompt, 100, GREEDY))


@pytest.mark.parametrize("case", ["helium-gqa-bias", "helium-mqa-tied", "llama-wide-heads"])
def test_greedy_ids_are_those_of_plain_decoding_on_every_kind_of_head(
    load_case: Callable[[str], HeliumForCausalLM], case: str
) -> None:
    model, prompt = load_case(case), [5, 6, 7]
    expected = ids(plain(model, prompt, 60, GREEDY))
    # Every seventh token is another.
    proposed = [token + (place % 7 == 0) for place, token in enumerate(expected)]
    run = Run(model, prompt, 60, propose=lambda place: proposed[place:])
    assert run.ids == expected
    assert 0 < run.decoding.accepted < run.decoding.drafted


def random_drafts(place: int) -> list[int]:
    """Eight drafts of a vocabulary of 8, others at every place."""
    return [(place * 5 + i * i + 1) % 8 for i in range(9)]


OPTIONS = {
    "temperature": SAMPLED,
    "every filter": SamplingOptions(temperature=1.3, top_k=6, top_p=0.9, min_p=0.02, seed=0),
    "penalty": SamplingOptions(temperature=1.0, repetition_penalty=1.7, seed=5),
    "penalty of the latest": SamplingOptions(
        temperature=1.0, repetition_penalty=1.7, repetition_context_size=5, seed=5
    ),
    "counted": SamplingOptions(presence_penalty=0.5, frequency_penalty=0.2, temperature=1.0, seed=5),
    "greedy penalty": SamplingOptions(repetition_penalty=1.5, repetition_context_size=6),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_whatever_the_drafts_a_seed_gives_the_text_of_plain_decoding(
    tiny: HeliumForCausalLM, options: SamplingOptions
) -> None:
    expected = ids(plain(tiny, [1, 2, 3], 60, options))
    accepted = 0
    for draft_tokens in (1, 4, 8):
        run = Run(tiny, [1, 2, 3], 60, options, draft_tokens=draft_tokens, propose=random_drafts)
        assert run.ids == expected
        accepted += run.decoding.accepted
    assert accepted > 5


def test_drafts_that_are_all_right_are_all_accepted(tiny: HeliumForCausalLM) -> None:
    expected = ids(plain(tiny, [1, 2, 3], 40, SAMPLED))
    run = Run(tiny, [1, 2, 3], 40, SAMPLED, draft_tokens=4, propose=lambda place: expected[place:])
    assert run.ids == expected
    assert run.decoding.accepted == run.decoding.drafted
    # The prefill gives one token, every other pass five at most.
    assert run.decoding.forward_passes == 1 + math.ceil(39 / 5)


def joint_probabilities(model: HeliumForCausalLM, prompt: list[int], top_k: int) -> dict[tuple[int, ...], float]:
    """The probability of each next three tokens at temperature 1, by running each through the model."""
    vocab_size = model.config.vocab_size
    triples = list(itertools.product(range(vocab_size), repeat=3))
    logits = model(mx.array([prompt + list(triple) for triple in triples])).logits[:, len(prompt) - 1 : -1]
    ranks = mx.argsort(mx.argsort(-logits, axis=-1), axis=-1)
    chances = mx.softmax(mx.where(ranks < top_k, logits, -math.inf), axis=-1)
    each = mx.take_along_axis(chances, mx.array(triples)[..., None], axis=-1)[..., 0]
    return dict(zip(triples, cast(list[float], each.prod(axis=-1).tolist()), strict=True))


def test_sampling_keeps_the_distribution_of_three_tokens(tiny: HeliumForCausalLM) -> None:
    prompt, draws, top_k = [1, 2, 3], 400, 4
    likely = ids(plain(tiny, prompt, 4, GREEDY))
    expected = joint_probabilities(tiny, prompt, top_k)
    assert sum(expected.values()) == pytest.approx(1, abs=1e-4)
    counts: Counter[tuple[int, ...]] = Counter()
    accepted = drafted = 0
    for seed in range(draws):
        options = SamplingOptions(temperature=1.0, top_k=top_k, seed=seed)
        run = Run(tiny, prompt, 3, options, draft_tokens=2, propose=lambda place: likely[place:])
        counts[tuple(run.ids)] += 1
        accepted, drafted = accepted + run.decoding.accepted, drafted + run.decoding.drafted
    # Both outcomes have to be there for the test to say something.
    assert 0.1 * drafted < accepted < 0.9 * drafted
    # Triples that are expected less than five times count as one.
    common = {triple for triple, chance in expected.items() if chance * draws >= 5}
    cells = [(counts[triple], expected[triple] * draws) for triple in common]
    rest = draws - sum(chance for _, chance in cells)
    cells.append((draws - sum(count for count, _ in cells), max(rest, 1.0)))
    chi_square = sum((count - chance) ** 2 / chance for count, chance in cells)
    freedom = len(cells) - 1
    # 99.99 % of samples, by Wilson and Hilferty's approximation.
    assert chi_square < freedom * (1 - 2 / (9 * freedom) + 3.72 * math.sqrt(2 / (9 * freedom))) ** 3


def test_log_probabilities_are_those_of_plain_decoding(demo: Demo) -> None:
    prompt = copied_story(demo[1])
    run = Run(demo[0], prompt, 30, top=3)
    expected = plain(demo[0], prompt, 30, GREEDY, top=3)
    assert run.decoding.accepted
    for ours, theirs in zip(run.decoded, expected, strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
        assert list(ours.top_logprobs) == list(theirs.top_logprobs)
        assert list(ours.top_logprobs.values()) == pytest.approx(list(theirs.top_logprobs.values()), abs=1e-4)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 20])
def test_no_pass_goes_beyond_the_tokens_asked_for(
    tiny: HeliumForCausalLM, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, original = [], type(tiny.model).run

    def recording(module: object, h: mx.array, cache: list[KVCache], **options: object) -> object:
        output = original(module, h, cache, **options)  # pyright: ignore[reportArgumentType]
        reached.append(cache[0].offset)
        return output

    monkeypatch.setattr(type(tiny.model), "run", recording)
    run = Run(tiny, [1, 2, 3], count, SAMPLED, propose=random_drafts)
    assert len(run.ids) == count
    assert max(reached) <= 3 + count - 1
    assert run.cache[0].offset == 3 + count - 1


@pytest.mark.parametrize("right", [True, False])
def test_a_run_that_is_ended_early_leaves_a_cache_that_can_be_cut_to_what_was_read(
    tiny: HeliumForCausalLM, right: bool
) -> None:
    prompt = [1, 2, 3]
    expected = ids(plain(tiny, prompt, 40, SAMPLED))
    for stop_after in range(1, 25):
        propose = (lambda place: expected[place:]) if right else random_drafts
        run = Run(tiny, prompt, 40, SAMPLED, draft_tokens=5, propose=propose, stop_after=stop_after)
        held = len(prompt) + stop_after - 1
        for layer in run.cache:
            assert layer.trim(layer.offset - held) >= 0
        again = make_cache(tiny)
        logits = prefill(tiny, prompt + expected[: stop_after - 1], again, step_size=512)
        last = mx.array([[expected[stop_after - 1]]])
        assert logits.shape[0] == 1
        assert mx.allclose(tiny.next_logits(last, run.cache), tiny.next_logits(last, again), atol=1e-4)


def test_a_pass_is_under_way_before_the_tokens_of_the_one_before_are_yielded(
    tiny: HeliumForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    events, start, read = [], mx.async_eval, LookupDecoding._read
    monkeypatch.setattr(mx, "async_eval", lambda *arrays: (events.append("start"), start(*arrays)))
    monkeypatch.setattr(LookupDecoding, "_read", lambda self, step: (events.append("read"), read(self, step))[1])
    run = Run(tiny, [1, 2, 3], 6, SAMPLED, propose=lambda _: [])
    assert len(run.ids) == 6
    assert events == ["start", "start", *["read", "start"] * 4, "read", "read"]


def test_without_drafts_each_pass_has_one_token(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = Passes(demo[0], monkeypatch)
    run = Run(demo[0], [500, 600, 700], 12, SAMPLED, propose=lambda _: [])
    assert passes.lengths == [3] + [1] * 11
    assert (run.decoding.drafted, run.decoding.forward_passes, run.decoding.tokens_per_pass) == (0, 12, 1.0)


def test_what_came_of_the_drafts_is_counted(tiny: HeliumForCausalLM) -> None:
    run = Run(tiny, [1, 2, 3], 60, SAMPLED, propose=random_drafts)
    decoding = run.decoding
    assert 0 < decoding.accepted < decoding.drafted
    assert decoding.accepted == sum(token.from_draft for token in run.decoded)
    assert decoding.forward_passes + decoding.accepted == 60
    assert decoding.tokens_per_pass == pytest.approx(60 / decoding.forward_passes)


def test_copied_text_takes_fewer_than_half_the_passes(demo: Demo) -> None:
    run = Run(demo[0], copied_story(demo[1]), 70)
    assert run.decoding.tokens_per_pass >= 2


def test_drafts_become_rare_where_they_are_rejected(tiny: HeliumForCausalLM) -> None:
    # Nearly every draw is as likely as any other, and of 8 tokens any two or three have been seen soon.
    run = Run(tiny, [1, 2, 3], 230, SamplingOptions(temperature=100.0, seed=0))
    assert 0 < run.decoding.drafted < 12


def test_the_policy_follows_acceptance() -> None:
    policy = DraftPolicy(16)
    lengths = []
    for drafted, accepted in ((4, 4), (8, 8), (16, 16), (16, 5), (6, 0)):
        policy.learn(drafted, accepted)
        lengths.append((policy.length, policy.required))
    shortest = SHORTEST_MATCH
    assert lengths == [(8, shortest), (16, shortest), (16, shortest), (6, shortest), (1, 2 * shortest)]
    for _ in range(9):
        policy.learn(1, 0)
    assert policy.required == PATIENCE
    policy.learn(1, 1)
    assert (policy.length, policy.required) == (2, shortest)


class Sized(KVCache):
    """Has the sizes of a rotating cache of 100 tokens that can take back 33."""

    max_size = 100
    max_slots = 132


def test_a_cache_that_will_be_full_takes_drafts_as_long_as_it_can_forget() -> None:
    check_draft_tokens(16, [Sized()], 1000)
    check_draft_tokens(50, [Sized()], 132)
    check_draft_tokens(50, [KVCache()], 1000)
    with pytest.raises(GenerationError, match=r"prompt_lookup is 17; .* 100 tokens, which 133 .*give prompt_lookup 16"):
        check_draft_tokens(17, [KVCache(), Sized()], 133)


def test_a_cache_that_forgets_nothing_once_full_takes_no_drafts() -> None:
    cache = Sized()
    cache.max_slots = 100
    with pytest.raises(GenerationError, match="leave out prompt_lookup, or leave out max_kv_size"):
        check_draft_tokens(1, [cache], 101)


@pytest.mark.parametrize("value", [0, -1, True, 2.5, "8"])
def test_a_number_of_draft_tokens_that_is_none_is_refused(value: object) -> None:
    with pytest.raises(GenerationError, match=r"prompt_lookup is .*at least 1"):
        check_draft_tokens(value, [], 10)  # pyright: ignore[reportArgumentType]
