"""Each option against plain Python: exact probabilities after the filters, and draws by a chi-square test."""

import hashlib
import math
import random
from collections.abc import Callable, Sequence
from typing import cast

import mlx.core as mx
import numpy as np
import pytest

import helium_mlx
from helium_mlx import GenerationError, stream_generate
from helium_mlx.generation.sampling import (
    Sampler,
    SamplingOptions,
    filtered_probabilities,
    key_of,
    penalize,
    race,
    random_bits,
    token_logprobs,
)

PROBABILITIES = [0.15, 0.3, 0.05, 0.4, 0.1]
LOGITS = [math.log(p) for p in PROBABILITIES]
DRAWS = 4000
# 99.99 % of samples are below these; the seeds are fixed, so a test passes always or never.
CHI_SQUARE = {1: 15.1, 2: 18.4, 3: 21.1, 4: 23.5, 5: 25.7, 6: 27.9, 7: 29.9, 8: 31.8, 9: 33.7}

Changes = dict[str, object]

# Options come from dicts, whose values have no common type.
make_options = cast("Callable[..., SamplingOptions]", SamplingOptions)


def _sampler_of(
    vocab_size: int,
    prompt: Sequence[int] = (0,),
    reserved: Sequence[int] = (),
    generated: Sequence[int] = (),
    **options: object,
) -> Sampler:
    prompt_ids = mx.array(list(prompt), dtype=mx.int32)
    return Sampler(
        make_options(**options), prompt_ids, vocab_size=vocab_size, reserved_ids=reserved, generated=generated
    )


sampler_of = cast("Callable[..., Sampler]", _sampler_of)


def tokens_from(sampler: Sampler, logits: Sequence[float], count: int) -> list[int]:
    row = mx.array([list(logits)])
    return cast("list[int]", mx.concatenate([sampler(row) for _ in range(count)]).tolist())


def plain_distribution(logits: Sequence[float], options: SamplingOptions, context: Sequence[int] = ()) -> list[float]:
    """What the options make of the logits after `context`, as their definitions say, one token at a time."""
    scores = [score + (options.logit_bias or {}).get(i, 0.0) for i, score in enumerate(logits)]
    scores = [-math.inf if i in options.banned_ids else score for i, score in enumerate(scores)]
    size = options.repetition_context_size or max(len(context), 1)
    for token in set(context[-size:]):
        penalty = options.repetition_penalty
        scores[token] = scores[token] * penalty if scores[token] < 0 else scores[token] / penalty
    if options.temperature == 0:
        return [float(score == max(scores)) for score in scores]
    scores = [score / options.temperature for score in scores]
    ranked = sorted(range(len(scores)), key=lambda i: -scores[i])
    if options.top_k:
        ranked = ranked[: options.top_k]
    mass = {i: math.exp(scores[i] - scores[ranked[0]]) for i in ranked}
    kept: list[int] = []
    for i in ranked:
        if sum(mass[j] for j in kept) / sum(mass.values()) < options.top_p:
            kept.append(i)
    kept = [i for i in kept if mass[i] >= options.min_p * mass[ranked[0]]]
    total = sum(mass[i] for i in kept)
    return [mass[i] / total if i in kept else 0.0 for i in range(len(scores))]


def weighed(logits: mx.array, options: SamplingOptions) -> list[float]:
    """The probabilities that are left, in the order of the vocabulary, normalised."""
    left, tokens = filtered_probabilities(logits, options)
    values = cast("list[float]", left[0].tolist())
    ids = range(logits.shape[-1]) if tokens is None else cast("list[int]", tokens[0].tolist())
    result = [0.0] * logits.shape[-1]
    for token, value in zip(ids, values, strict=True):
        result[token] = value / sum(values)
    return result


def assert_drawn_from(expected: Sequence[float], tokens: Sequence[int]) -> None:
    counts = [tokens.count(i) for i in range(len(expected))]
    assert all(count == 0 for count, p in zip(counts, expected, strict=True) if p == 0), counts
    possible = [(count, p * len(tokens)) for count, p in zip(counts, expected, strict=True) if p > 0]
    if len(possible) > 1:
        assert sum((count - e) ** 2 / e for count, e in possible) < CHI_SQUARE[len(possible) - 1], (counts, expected)


FILTERS: list[Changes] = [
    {},
    {"temperature": 0.5},
    {"temperature": 2.0},
    {"top_k": 1},
    {"top_k": 3},
    {"top_k": 9},
    {"top_p": 0.6},
    {"top_p": 0.75},
    {"top_p": 0.01},
    {"min_p": 0.3},
    {"min_p": 1.0},
    {"top_k": 4, "top_p": 0.8, "min_p": 0.3, "temperature": 1.5},
    {"top_k": 3, "top_p": 0.75},
]
BEFORE_THE_FILTERS: list[Changes] = [
    {"logit_bias": {0: 1.5, 3: -2.0}},
    {"logit_bias": {3: -1e9}},
    {"logit_bias": {2: 1e9}},
    {"banned_ids": [3]},
    {"banned_ids": {0, 1, 2, 4}},
    {"banned_ids": [1], "logit_bias": {1: 50.0, 0: 1.0}, "top_k": 2},
    {"banned_ids": [3], "top_p": 0.6},
    {"repetition_penalty": 3.0},
    {"repetition_penalty": 0.4, "temperature": 0.7},
]


@pytest.mark.parametrize("changes", FILTERS, ids=str)
def test_probabilities_are_what_the_definitions_say(changes: Changes) -> None:
    options = make_options(**{"temperature": 1.0, **changes})
    assert weighed(mx.array([LOGITS]), options) == pytest.approx(plain_distribution(LOGITS, options), abs=1e-6)


def test_probabilities_of_random_logits_are_what_the_definitions_say() -> None:
    chance = random.Random(1)
    for _ in range(60):
        logits = [chance.gauss(0, 3) for _ in range(chance.randint(2, 40))]
        options = SamplingOptions(
            temperature=chance.uniform(0.3, 2.0),
            top_p=chance.choice([1.0, chance.uniform(0.05, 0.99)]),
            top_k=chance.choice([0, chance.randint(1, 40)]),
            min_p=chance.choice([0.0, chance.uniform(0.0, 0.9)]),
        )
        assert weighed(mx.array([logits]), options) == pytest.approx(plain_distribution(logits, options), abs=1e-5)


@pytest.mark.parametrize("changes", [*FILTERS, *BEFORE_THE_FILTERS], ids=str)
def test_draws_follow_the_definitions(changes: Changes) -> None:
    options = {"temperature": 1.0, **changes}
    # Positive and negative logits, for the penalty.
    logits = [score + 1.5 for score in LOGITS]
    sampler = sampler_of(5, prompt=[3, 2], seed=11, **options)
    # Nothing is taken: what was drawn would be penalised.
    drawn: list[mx.array] = []
    for n in range(DRAWS // 100):
        if "repetition_penalty" in options:
            drawn += [_at(sampler, 100 * n + row).draw(mx.array([logits])) for row in range(100)]
        else:
            drawn.append(_at(sampler, 100 * n).draw(mx.array([logits] * 100)))
    expected = plain_distribution(logits, make_options(**options), context=[3, 2])
    assert_drawn_from(expected, cast("list[int]", mx.concatenate(drawn).tolist()))


def _at(sampler: Sampler, position: int) -> Sampler:
    there = sampler.copy()
    there.drawn = position
    return there


def test_the_chi_square_test_fails_for_another_distribution() -> None:
    tokens = tokens_from(sampler_of(5, temperature=1.1, seed=11), LOGITS, DRAWS)
    with pytest.raises(AssertionError):
        assert_drawn_from(plain_distribution(LOGITS, SamplingOptions(temperature=0.9)), tokens)


def test_consecutive_draws_are_independent() -> None:
    tokens = tokens_from(sampler_of(2, temperature=1.0, seed=3), [0.0, 0.5], DRAWS)
    p = plain_distribution([0.0, 0.5], SamplingOptions(temperature=1.0))
    pairs = [2 * first + second for first, second in zip(tokens[::2], tokens[1::2], strict=True)]
    assert_drawn_from([p[i] * p[j] for i in (0, 1) for j in (0, 1)], pairs)


def test_seeds_that_follow_each_other_are_independent() -> None:
    first = [tokens_from(sampler_of(2, temperature=1.0, seed=seed), [0.0, 0.5], 1)[0] for seed in range(1000)]
    p = plain_distribution([0.0, 0.5], SamplingOptions(temperature=1.0))
    pairs = [2 * a + b for a, b in zip(first[::2], first[1::2], strict=True)]
    assert_drawn_from([p[i] * p[j] for i in (0, 1) for j in (0, 1)], pairs)


def test_rare_tokens_are_as_rare_as_they_should_be() -> None:
    # One common token, and 4999 that have a thousandth of the probability together.
    rare = math.log(0.001 / 4999)
    sampler = sampler_of(5000, temperature=1.0, seed=4)
    rows = mx.array([[math.log(0.999)] + [rare] * 4999] * 100)
    drawn = cast("list[int]", mx.concatenate([_at(sampler, 100 * n).draw(rows) for n in range(40)]).tolist())
    assert_drawn_from([0.999, 0.001], [int(token > 0) for token in drawn])


def test_temperature_0_takes_the_most_probable_of_the_logits_as_they_are() -> None:
    assert tokens_from(sampler_of(5), LOGITS, 5) == [3] * 5
    assert sampler_of(2)(mx.array([[1.0, 2.0]], dtype=mx.bfloat16)).tolist() == [1]


@pytest.mark.parametrize("temperature", [5e-324, 1e-30, 1e-6])
def test_no_temperature_is_too_small(temperature: float) -> None:
    assert tokens_from(sampler_of(3, temperature=temperature, seed=0), [-3e4, 9999.99, 1e4], 20) == [2] * 20


@pytest.mark.parametrize("temperature", [1e30, 1e39, 1e300])
def test_no_temperature_is_too_large(temperature: float) -> None:
    tokens = tokens_from(sampler_of(5, temperature=temperature, seed=0), LOGITS, DRAWS)
    assert_drawn_from([0.2] * 5, tokens)
    tokens = tokens_from(sampler_of(5, temperature=temperature, seed=0, banned_ids=[1]), LOGITS, DRAWS)
    assert_drawn_from([0.25, 0.0, 0.25, 0.25, 0.25], tokens)


def test_equal_tokens_beyond_top_k_are_dropped() -> None:
    kept = weighed(mx.zeros((1, 6)), SamplingOptions(temperature=1.0, top_k=4))
    assert sorted(kept) == [0, 0, 0.25, 0.25, 0.25, 0.25]


@pytest.mark.parametrize("top_p", [1e-300, 1e-46, 1e-38, 1e-20, 1e-9], ids=str)
@pytest.mark.parametrize("more", [{}, {"top_k": 3}, {"min_p": 0.1}, {"repetition_penalty": 1.1}], ids=str)
def test_however_small_top_p_is_it_leaves_the_most_probable_token(top_p: float, more: Changes) -> None:
    sampler = sampler_of(5, seed=1, temperature=0.7, top_p=top_p, **more)
    assert set(tokens_from(sampler, LOGITS, 20)) == {3}


@pytest.mark.parametrize("vocab_size", [1000, 2049, 48000, 49999])
def test_a_small_top_p_leaves_one_of_tokens_that_are_as_probable_as_each_other(vocab_size: int) -> None:
    kept, _ = filtered_probabilities(mx.zeros((1, vocab_size)), make_options(temperature=1.0, top_p=1e-9))
    assert (kept > 0).sum().item() == 1


def test_top_p_stops_at_exactly_p() -> None:
    kept = weighed(mx.zeros((1, 4)), SamplingOptions(temperature=1.0, top_p=0.5))
    assert sorted(kept) == [0, 0, 0.5, 0.5]


@pytest.mark.parametrize("changes", FILTERS, ids=str)
def test_the_most_probable_token_of_bfloat16_logits_always_stays(changes: Changes) -> None:
    logits = mx.array([LOGITS], dtype=mx.bfloat16)
    kept = weighed(logits, make_options(**{"temperature": 1.0, **changes}))
    assert kept[3] == max(kept) > 0


def test_sampling_bfloat16_logits_is_sampling_them_in_float32() -> None:
    chance = random.Random(5)
    logits = mx.array([[chance.gauss(0, 2) for _ in range(300)]], dtype=mx.bfloat16)
    options: Changes = {
        "temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.3, "logit_bias": {7: 1.5}, "seed": 2
    }  # fmt: skip
    drawn: list[list[int]] = []
    for row in (logits, logits.astype(mx.float32)):
        sampler = sampler_of(300, **options)
        drawn.append(cast("list[int]", mx.concatenate([sampler(row) for _ in range(20)]).tolist()))
    assert drawn[0] == drawn[1]


# --- bias and bans


def test_reserved_ids_are_banned_from_sampled_text_alone() -> None:
    sampled = tokens_from(sampler_of(5, temperature=5.0, seed=1, reserved=[0, 3]), LOGITS, 300)
    assert set(sampled) == {1, 2, 4}
    assert tokens_from(sampler_of(5, reserved=[0, 3]), LOGITS, 1) == [3]


def test_explicit_bans_hold_when_greedy_too_and_come_beside_the_reserved_ids() -> None:
    assert tokens_from(sampler_of(5, banned_ids=[3]), LOGITS, 1) == [1]
    sampled = tokens_from(sampler_of(5, temperature=5.0, seed=1, banned_ids=[1], reserved=[0, 3]), LOGITS, 300)
    assert set(sampled) == {2, 4}


def test_reserved_ids_that_the_model_does_not_have_are_nothing_to_ban() -> None:
    sampler = sampler_of(5, temperature=5.0, seed=1, reserved=range(3, 105))
    assert set(tokens_from(sampler, LOGITS, 100)) == {0, 1, 2}
    with pytest.raises(GenerationError, match="all 5 tokens are banned"):
        sampler_of(5, temperature=5.0, reserved=range(105))


def test_a_bias_lifts_the_ban_of_a_reserved_id_and_not_an_explicit_one() -> None:
    options: Changes = {"temperature": 5.0, "seed": 1, "logit_bias": {0: 0.0, 1: 9.0}, "banned_ids": [1]}
    assert set(tokens_from(sampler_of(5, reserved=[0, 3], **options), LOGITS, 300)) == {0, 2, 4}


def test_a_bias_comes_before_the_penalty() -> None:
    # 3 + 1 is divided; the other order would be 3 / 2 + 1 and lose.
    options: Changes = {"logit_bias": {0: 2.0}, "repetition_penalty": 2.0}
    assert tokens_from(sampler_of(2, prompt=[0], **options), [2.0, 2.5], 1) == [1]
    assert plain_distribution([2.0, 2.5], make_options(**options), [0]) == [0, 1]


def test_reserved_ids_of_the_demo_never_appear_in_sampled_text() -> None:
    model, tokenizer = helium_mlx.load("demo")
    assert len(tokenizer.reserved_ids) == 100
    # So hot that all 2048 ids are about as probable: 200 tokens would have ten of them.
    chunks = list(stream_generate(model, tokenizer, "The", temperature=100.0, seed=0, max_tokens=200, ignore_eos=True))
    assert len(chunks) == 200
    assert not tokenizer.reserved_ids & {chunk.token for chunk in chunks}


# --- the repetition penalty


def test_penalty_pushes_both_signs_down_once() -> None:
    logits, where = mx.array([[2.0, -2.0, 1.0, 0.0]]), mx.array([True, True, False, True])
    assert penalize(logits, where, 2.0).tolist() == [[1.0, -4.0, 1.0, 0.0]]
    assert penalize(logits, where, 0.5).tolist() == [[4.0, -1.0, 1.0, 0.0]]


@pytest.mark.parametrize("size", [None, 1, 2, 5, 7, 30, 500])
@pytest.mark.parametrize("prompt", [[4], [1, 2, 2, 1], [3, 3, 9, 0, 5, 3, 7]], ids=str)
def test_penalty_covers_prompt_and_output_as_far_back_as_it_is_told(size: int | None, prompt: list[int]) -> None:
    chance = random.Random(8)
    options: Changes = {"repetition_penalty": 1.9, "repetition_context_size": size}
    sampler, context = sampler_of(10, prompt=prompt, **options), list(prompt)
    for _ in range(40):
        logits = [chance.gauss(0, 1) for _ in range(10)]
        token = tokens_from(sampler, logits, 1)[0]
        assert plain_distribution(logits, make_options(**options), context)[token] == 1
        context.append(token)


@pytest.mark.parametrize("size", [None, 700])
def test_what_the_penalty_keeps_does_not_grow_with_the_context(size: int | None) -> None:
    sampler = sampler_of(10, prompt=[1] * 3000, repetition_penalty=1.1, repetition_context_size=size)
    for _ in range(3):
        assert [(array.shape, array.dtype) for array in sampler.state] == [((10,), mx.int32)]
        tokens_from(sampler, LOGITS * 2, 20)


# --- presence and frequency penalties


def penalized_scores(logits: np.ndarray, generated: Sequence[int], options: SamplingOptions) -> np.ndarray:
    """OpenAI's formula: logit - count * frequency - (count > 0) * presence, counts being of generated tokens."""
    counts = np.bincount(np.array(generated, dtype=np.int64), minlength=len(logits))
    return logits - counts * options.frequency_penalty - (counts > 0) * options.presence_penalty


COUNTED: list[Changes] = [
    {"presence_penalty": 0.7},
    {"frequency_penalty": 0.3},
    {"presence_penalty": -0.4, "frequency_penalty": 0.6},
    {"presence_penalty": 2, "frequency_penalty": -2},
]


@pytest.mark.parametrize("changes", COUNTED, ids=str)
def test_penalties_of_generated_tokens_follow_the_formula(changes: Changes) -> None:
    chance, options = np.random.default_rng(2), make_options(**changes)
    # The prompt is no part of what is counted.
    sampler, generated = sampler_of(8, prompt=[1, 1, 5, 7], **changes), list[int]()
    for _ in range(60):
        logits = chance.normal(0, 1, 8).astype(np.float32)
        token = tokens_from(sampler, logits.tolist(), 1)[0]
        assert token == penalized_scores(logits, generated, options).argmax()
        generated.append(token)


@pytest.mark.parametrize("changes", COUNTED, ids=str)
def test_draws_follow_the_formula(changes: Changes) -> None:
    generated, options = [3, 3, 0], make_options(**changes)
    sampler = sampler_of(5, temperature=1.0, seed=5, generated=generated, **changes)
    drawn = [_at(sampler, n).draw(mx.array([LOGITS])) for n in range(1000)]
    expected = plain_distribution(
        penalized_scores(np.array(LOGITS), generated, options).tolist(), SamplingOptions(temperature=1.0)
    )
    assert_drawn_from(expected, cast("list[int]", mx.concatenate(drawn).tolist()))


def test_a_frequency_penalty_counts_a_token_that_is_taken_twice_at_once() -> None:
    sampler = sampler_of(2, frequency_penalty=1.0)
    sampler.take(mx.array([0, 0]))
    assert tokens_from(sampler, [2.5, 1.0], 1) == [1]


def test_without_these_penalties_nothing_is_counted() -> None:
    assert sampler_of(5).takes_best
    assert sampler_of(5).state == []
    assert not sampler_of(5, presence_penalty=0.1).takes_best
    assert [array.shape for array in sampler_of(5, frequency_penalty=0.1).state] == [(5,)]


def test_generate_hands_the_penalties_on() -> None:
    model, tokenizer = helium_mlx.load("demo")
    generate = cast("Callable[..., str]", helium_mlx.generate)
    options: Changes = {"max_tokens": 12, "logit_bias": {401: 40.0, 402: 40.0, 403: 40.0}}
    penalties: list[Changes] = [{}, {"presence_penalty": 2.0}, {"frequency_penalty": 2.0}]
    assert len({generate(model, tokenizer, "Once", **options, **penalty) for penalty in penalties}) == 3


# --- seeds


def test_a_seed_repeats_and_0_is_one() -> None:
    runs = [tokens_from(sampler_of(5, temperature=1.0, seed=seed), LOGITS, 50) for seed in (0, 0, 1, 2**64 - 1)]
    assert runs[0] == runs[1]
    assert len({tuple(run) for run in runs}) == 3


def test_without_a_seed_no_two_requests_are_alike() -> None:
    runs = [tokens_from(sampler_of(5, temperature=1.0), LOGITS, 60) for _ in range(4)]
    assert len({tuple(run) for run in runs}) == 4


@pytest.mark.parametrize(
    "changes", [{}, {"top_k": 5}, {"top_p": 0.7}, {"top_k": 6, "top_p": 0.9, "min_p": 0.1}], ids=str
)
def test_a_draw_is_the_first_to_arrive_in_a_race(changes: Changes) -> None:
    """The definition in double precision: each token's time, from its bits behind the key of (seed, n), and a filter
    only takes tokens out of the race."""
    chance = random.Random(9)
    options = make_options(temperature=1.0, seed=2**63 + 5, **changes)
    sampler = sampler_of(11, temperature=1.0, seed=2**63 + 5, **changes)
    for n in range(60):
        logits = [chance.gauss(0, 2) for _ in range(11)]
        digest = hashlib.blake2b((2**63 + 5).to_bytes(8, "little") + n.to_bytes(8, "little"), digest_size=8).digest()
        bits = mx.random.split(mx.random.key(int.from_bytes(digest, "little")), 6).reshape(-1).tolist()
        times = [
            -math.log1p(-b / 2**32) / p if p else math.inf
            for b, p in zip(cast("list[int]", bits), plain_distribution(logits, options), strict=False)
        ]
        assert tokens_from(sampler, logits, 1) == [times.index(min(times))]


@pytest.mark.parametrize("seed", [7, None])
def test_global_random_state_is_neither_read_nor_changed(seed: int | None) -> None:
    mx.random.seed(5)
    expected = mx.random.uniform(shape=(3,)).tolist()
    mx.random.seed(5)
    seeded = tokens_from(sampler_of(5, temperature=1.0, top_p=0.9, seed=seed), LOGITS, 40)
    assert mx.random.uniform(shape=(3,)).tolist() == expected
    mx.random.seed(5)
    assert (tokens_from(sampler_of(5, temperature=1.0, top_p=0.9, seed=seed), LOGITS, 40) == seeded) == (seed == 7)


def test_interleaved_requests_of_one_seed_give_the_same_text() -> None:
    model, tokenizer = helium_mlx.load("demo")
    streams = [
        stream_generate(model, tokenizer, "Once", temperature=1.0, seed=3, max_tokens=25, repetition_penalty=1.2)
        for _ in range(2)
    ]
    first, second = zip(*((a.token, b.token) for a, b in zip(*streams, strict=True)), strict=True)
    assert first == second
    assert len(first) > 10


@pytest.mark.parametrize("vocab_size", [5, 6])
def test_bits_of_a_row_depend_on_its_key_alone(vocab_size: int) -> None:
    keys = [key_of(1, n) for n in range(3)]
    together = random_bits(keys, vocab_size)
    assert together.shape == (3, vocab_size)
    assert together.dtype == mx.uint32
    assert together.tolist() == [random_bits([key], vocab_size)[0].tolist() for key in keys]
    assert len({value for row in cast("list[list[int]]", together.tolist()) for value in row}) == 3 * vocab_size


@pytest.mark.parametrize("extreme", [0, 2**32 - 1])
def test_the_most_extreme_bits_take_no_token_that_was_filtered_out(extreme: int) -> None:
    bits = mx.array([[extreme, 2**31, extreme]], dtype=mx.uint32)
    assert race(mx.array([[0.0, 1.0, 0.0]]), None, bits).tolist() == [1]
    assert race(mx.array([[0.0, 1.0]]), mx.array([[2, 1]], dtype=mx.uint32), bits).tolist() == [1]
    only = mx.full((1, 3), extreme, dtype=mx.uint32)
    assert race(mx.array([[0.0, 0.0, 1e-3]]), None, only).tolist() == [2]


# --- several positions in a pass

DRAFTED: list[Changes] = [
    {},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_p": 0.8, "min_p": 0.01},
    {"temperature": 1.2, "top_k": 7, "banned_ids": [4]},
    {"temperature": 1.0, "repetition_penalty": 1.8, "repetition_context_size": 3},
    {"repetition_penalty": 2.5},
    {"presence_penalty": 1.5, "frequency_penalty": 0.5},
    {"temperature": 1.0, "frequency_penalty": 2.0, "repetition_penalty": 1.2},
]


@pytest.mark.parametrize("changes", DRAFTED, ids=str)
def test_drawing_ahead_and_taking_what_holds_gives_the_same_tokens(changes: Changes) -> None:
    chance = random.Random(3)
    rows = mx.array([[chance.gauss(0, 2) for _ in range(12)] for _ in range(40)])
    one_by_one = sampler_of(12, seed=6, **changes)
    expected = [one_by_one(rows[i : i + 1]).item() for i in range(40)]
    ahead, tokens = sampler_of(12, seed=6, **changes), []
    while len(tokens) < 40:
        drawn = ahead.draw(rows[len(tokens) : len(tokens) + 4])
        accepted = drawn[: chance.randint(1, 4)]
        ahead.take(accepted)
        tokens += cast("list[int]", accepted.tolist())
    assert tokens == expected


def test_a_copy_goes_its_own_way() -> None:
    sampler = sampler_of(5, temperature=1.0, seed=2, repetition_penalty=1.5)
    tokens_from(sampler, LOGITS, 3)
    ahead = sampler.copy()
    assert tokens_from(ahead, LOGITS, 9) == tokens_from(sampler, LOGITS, 9)
    tokens_from(ahead, LOGITS, 1)
    assert ahead.drawn == sampler.drawn + 1


# --- log-probabilities and refusals


def test_log_probabilities_are_float32_whatever_the_logits_are() -> None:
    rows = [[2.0, -1.0, 0.5], [0.25, 8.0, -3.0]]
    values, ids, tops = token_logprobs(mx.array(rows, dtype=mx.bfloat16), mx.array([1, 0]), 2)
    plain = [[x - math.log(sum(math.exp(y) for y in row)) for x in row] for row in rows]
    assert values.dtype == tops.dtype == mx.float32
    assert values.tolist() == pytest.approx([plain[0][1], plain[1][0]], abs=1e-6)
    found = zip(cast("list[list[int]]", ids.tolist()), cast("list[list[float]]", tops.tolist()), strict=True)
    for (row_ids, row_values), row, expected in zip(found, plain, [{0, 2}, {0, 1}], strict=True):
        assert set(row_ids) == expected
        assert row_values == pytest.approx([row[token] for token in row_ids], abs=1e-6)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("min_p", 1.5),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("frequency_penalty", math.nan),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", math.nan),
        ("top_k", 5.5),
        ("seed", 1.5),
        ("repetition_context_size", 0),
        ("seed", -1),
        ("seed", 2**64),
    ],
)
def test_options_out_of_range_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(GenerationError, match=f"{name} is {value}"):
        make_options(**{name: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logit_bias": {1: math.nan}}, "logit_bias has nan for token 1; it must be a number"),
        ({"logit_bias": {1: -math.inf}}, "logit_bias has -inf for token 1"),
        ({"logit_bias": {1: 10**400}}, "logit_bias has 1000"),
        ({"logit_bias": {1: "5"}}, "logit_bias has '5' for token 1"),
        ({"logit_bias": {1: True}}, "logit_bias has True for token 1"),
        ({"logit_bias": {"1": 5.0}}, "logit_bias has the token '1'; token ids are whole numbers"),
        ({"logit_bias": {-1: 5.0}}, "logit_bias has the token -1"),
        ({"logit_bias": [(1, 5.0)]}, "logit_bias is list; it must be a mapping"),
        ({"banned_ids": [1.5]}, "banned_ids has the token 1.5"),
        ({"banned_ids": [True]}, "banned_ids has the token True"),
        ({"banned_ids": [-2]}, "banned_ids has the token -2"),
        ({"banned_ids": 5}, "banned_ids is 5; it must be a sequence or set"),
        ({"banned_ids": "12"}, "banned_ids is '12'; it must be a sequence or set"),
        ({"banned_ids": [5]}, "banned_ids has the token 5; the model's ids are 0 to vocab_size - 1 = 4"),
        ({"logit_bias": {7: 1.0}}, "logit_bias has the token 7; the model's ids are 0 to vocab_size - 1 = 4"),
        ({"banned_ids": range(5)}, "all 5 tokens are banned, by banned_ids or as reserved ones; leave at least one"),
    ],
)
def test_bias_and_bans_that_cannot_be_are_refused_in_one_line(changes: Changes, message: str) -> None:
    with pytest.raises(GenerationError) as caught:
        sampler_of(5, **changes)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_options_do_not_change_with_what_they_were_made_of() -> None:
    bias, bans = {1: 2.0}, [3]
    options = SamplingOptions(logit_bias=bias, banned_ids=bans)
    bias[2] = 5.0
    bans.append(4)
    assert options == SamplingOptions(logit_bias={1: 2.0}, banned_ids={3})
