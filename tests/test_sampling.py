import math
from collections import Counter

import mlx.core as mx
import pytest

from helium_mlx.errors import GenerationError
from helium_mlx.sampling import Sampler, SamplingOptions, filtered_logits, logprobs, penalize

LOGITS = mx.log(mx.array([[0.4, 0.3, 0.15, 0.1, 0.05]]))
NO_PROMPT = mx.array([0], dtype=mx.int32)


def kept(**options: float) -> list[int]:
    filtered = filtered_logits(LOGITS, SamplingOptions(temperature=1.0, **options))  # pyright: ignore[reportArgumentType]
    return [i for i, value in enumerate(filtered[0].tolist()) if value > -math.inf]  # pyright: ignore


def draws(count: int, **options: float) -> Counter[int]:
    sampler = Sampler(SamplingOptions(seed=0, **options), NO_PROMPT)  # pyright: ignore[reportArgumentType]
    return Counter(int(mx.concatenate([sampler(LOGITS)]).item()) for _ in range(count))  # pyright: ignore


def test_temperature_0_takes_the_most_probable() -> None:
    assert draws(5, temperature=0.0) == {0: 5}


def test_draws_follow_the_probabilities() -> None:
    counts = draws(2000, temperature=1.0)
    expected = [800, 600, 300, 200, 100]
    chi_square = sum((counts[i] - e) ** 2 / e for i, e in enumerate(expected))
    assert chi_square < 18.5  # 99.9 % of samples with 4 degrees of freedom


def test_temperature_sharpens_and_flattens() -> None:
    assert draws(300, temperature=0.3)[0] > draws(300, temperature=1.0)[0] > draws(300, temperature=3.0)[0]


@pytest.mark.parametrize(("k", "expected"), [(0, [0, 1, 2, 3, 4]), (1, [0]), (3, [0, 1, 2]), (9, [0, 1, 2, 3, 4])])
def test_top_k_keeps_k(k: int, expected: list[int]) -> None:
    assert kept(top_k=k) == expected


@pytest.mark.parametrize(("p", "expected"), [(1.0, [0, 1, 2, 3, 4]), (0.6, [0, 1]), (0.75, [0, 1, 2]), (0.01, [0])])
def test_top_p_keeps_the_smallest_set_that_reaches_p(p: float, expected: list[int]) -> None:
    assert kept(top_p=p) == expected


@pytest.mark.parametrize(("p", "expected"), [(0.0, [0, 1, 2, 3, 4]), (0.3, [0, 1, 2]), (1.0, [0])])
def test_min_p_drops_what_is_far_below_the_best(p: float, expected: list[int]) -> None:
    assert kept(min_p=p) == expected


def test_filters_keep_the_order_of_the_vocabulary() -> None:
    shuffled = LOGITS[:, mx.array([3, 0, 4, 2, 1])]
    filtered = filtered_logits(shuffled, SamplingOptions(temperature=1.0, top_p=0.6))
    assert [i for i, value in enumerate(filtered[0].tolist()) if value > -math.inf] == [1, 4]  # pyright: ignore


def test_penalty_pushes_both_signs_down_once() -> None:
    logits = mx.array([[2.0, -2.0, 1.0]])
    assert penalize(logits, mx.array([0, 1, 1]), 2.0).tolist() == [[1.0, -4.0, 1.0]]


def test_penalty_covers_prompt_and_output() -> None:
    sampler = Sampler(SamplingOptions(repetition_penalty=100.0), mx.array([0], dtype=mx.int32))
    logits = mx.array([[3.0, 2.0, 1.0]])
    assert [sampler(logits).item() for _ in range(2)] == [1, 2]


def test_penalty_looks_back_as_far_as_it_is_told() -> None:
    options = SamplingOptions(repetition_penalty=100.0, repetition_context_size=1)
    sampler = Sampler(options, mx.array([1, 0], dtype=mx.int32))
    logits = mx.array([[3.0, 2.0, 1.0]])
    assert [sampler(logits).item() for _ in range(4)] == [1, 0, 1, 0]


def test_a_seed_repeats_and_0_is_one() -> None:
    first = [draws(50, temperature=1.0) for _ in range(2)]
    assert first[0] == first[1]
    other = Sampler(SamplingOptions(temperature=1.0, seed=1), NO_PROMPT)
    zero = Sampler(SamplingOptions(temperature=1.0, seed=0), NO_PROMPT)
    assert [other(LOGITS).item() for _ in range(30)] != [zero(LOGITS).item() for _ in range(30)]


def test_global_random_state_is_neither_read_nor_changed() -> None:
    mx.random.seed(5)
    expected = mx.random.uniform(shape=(3,)).tolist()
    mx.random.seed(5)
    seeded = draws(20, temperature=1.0)
    assert mx.random.uniform(shape=(3,)).tolist() == expected
    mx.random.seed(6)
    assert draws(20, temperature=1.0) == seeded


def test_logprobs_are_float32_and_sum_to_one() -> None:
    scores = logprobs(LOGITS.astype(mx.bfloat16))
    assert scores.dtype == mx.float32
    assert mx.exp(scores).sum().item() == pytest.approx(1.0, abs=1e-6)


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
        SamplingOptions(**{name: value})  # pyright: ignore[reportArgumentType]


def test_top_p_stops_at_exactly_p() -> None:
    even = filtered_logits(mx.zeros((1, 4)), SamplingOptions(temperature=1.0, top_p=0.5))
    assert mx.isfinite(even).sum().item() == 2
