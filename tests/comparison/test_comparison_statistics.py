import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helium_mlx.comparison.figures import Measured, figures, percentile, ratio_of_sums


def test_the_error_of_a_mean_over_equal_windows_is_the_textbooks() -> None:
    sums = [1.0, 4.0, 2.5, 0.5, 3.0]
    mean, error = ratio_of_sums(sums, [1] * 5)
    assert mean == pytest.approx(statistics.mean(sums))
    assert error == pytest.approx(statistics.stdev(sums) / math.sqrt(5))


def test_windows_and_not_tokens_are_the_draws() -> None:
    # Within a window all tokens are alike: ten times as many of them say nothing more.
    few = ratio_of_sums([1.0, 3.0, 2.0], [1, 1, 1])
    many = ratio_of_sums([10.0, 30.0, 20.0], [10, 10, 10])
    assert many == pytest.approx(few)


def test_the_error_is_how_much_the_ratio_varies_from_sample_to_sample() -> None:
    rng = random.Random(3)

    def sample() -> tuple[float, float]:
        weights = [rng.randint(5, 40) for _ in range(60)]
        means = [rng.gauss(1, 0.5) for _ in weights]
        mean, error = ratio_of_sums([a * b for a, b in zip(means, weights, strict=True)], weights)
        assert error is not None
        return mean, error

    ratios, errors = zip(*(sample() for _ in range(400)), strict=True)
    assert statistics.mean(errors) == pytest.approx(statistics.stdev(ratios), rel=0.1)


def test_one_window_has_no_error() -> None:
    assert ratio_of_sums([3.0], [2]) == (1.5, None)
    one = figures([Measured(2, [1.0, 2.0], [1.0, 3.0], [0.1, 0.2], [True, False])], 6)
    assert (one.mean_kl_error, one.perplexity_ratio_error) == (None, None)
    assert one.mean_kl == pytest.approx(0.15)
    assert one.perplexity_ratio == pytest.approx(math.exp(0.5))


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50), st.floats(0, 1))
def test_a_percentile_lies_between_its_neighbours_ranks(values: list[float], share: float) -> None:
    result, rank = percentile(values, share), share * (len(values) - 1)
    assert sorted(values)[math.floor(rank)] - 1e-9 <= result <= sorted(values)[math.ceil(rank)] + 1e-9


def test_percentiles_by_hand() -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
    assert percentile(list(map(float, range(101))), 0.99) == pytest.approx(99)
    assert percentile([5.0], 0.99) == 5


def test_a_perplexity_beyond_floats_is_infinite() -> None:
    figure = figures([Measured(1, [1.0], [800.0], [], [])], 1)
    assert figure.candidate_perplexity == figure.perplexity_ratio == math.inf
    assert figure.candidate_bits_per_byte == pytest.approx(800 / math.log(2))
