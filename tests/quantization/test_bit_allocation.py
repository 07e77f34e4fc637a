import itertools
import random
from itertools import pairwise
from pathlib import Path

import mlx.core as mx
import pytest
from tiny_checkpoints import write_checkpoint

from helium_mlx.checkpoint.checkpoint import open_checkpoint
from helium_mlx.checkpoint.quantization_settings import QuantizationSettings
from helium_mlx.errors import QuantizationError
from helium_mlx.quantization.bit_allocation import Choice, allocate, deal_out, settings_for
from helium_mlx.quantization.calibration import Windows
from helium_mlx.quantization.recipes import bits_per_weight

ANY = QuantizationSettings(64, 4)


def windows(count: int = 4) -> Windows:
    made = [mx.array([[1, *(3 + (7 * i + 5 * k) % 50 for i in range(24))]]) for k in range(count)]
    return Windows(made[:-1], made[-1:])


def problem(seed: int) -> dict[str, list[Choice]]:
    """Four modules of unlike size and weight, with errors that fall fourfold a bit, more or less."""
    rng = random.Random(seed)
    choices = {}
    for module in "abcd":
        size, weight = rng.choice([1, 2, 6]), 10 ** rng.uniform(-3, 0)
        choices[module] = [
            Choice(ANY, size * bits + rng.randrange(2), weight * 4.0**-bits * rng.uniform(0.7, 1.3))
            for bits in (2, 3, 4, 5, 6, 8)
        ]
    return choices


def brute_force(choices: dict[str, list[Choice]], budget: int) -> float:
    return min(
        sum(choice.kl for choice in each)
        for each in itertools.product(*choices.values())
        if sum(choice.n_bytes for choice in each) <= budget
    )


@pytest.mark.parametrize("seed", range(20))
def test_what_is_dealt_out_is_near_the_best_there_is(seed: int) -> None:
    choices = problem(seed)
    smallest, largest = (sum(pick(c.n_bytes for c in each) for each in choices.values()) for pick in (min, max))
    for budget in range(smallest, largest + 1, max(1, (largest - smallest) // 6)):
        chosen = deal_out(choices, budget)
        assert sum(choice.n_bytes for choice in chosen.values()) <= budget
        # One module's step at most is lost to what does not fit: 1.76 was the worst of these.
        assert sum(choice.kl for choice in chosen.values()) <= 2 * brute_force(choices, budget) + 1e-12


def test_all_the_best_are_taken_where_there_is_room() -> None:
    choices = problem(0)
    chosen = deal_out(choices, 10**9)
    assert all(chosen[module].kl == min(choice.kl for choice in each) for module, each in choices.items())


def test_the_sensitive_module_gets_the_bits() -> None:
    choices = {
        module: [Choice(ANY, bits, weight * 4.0**-bits) for bits in (2, 4, 8)]
        for module, weight in (("dull", 1.0), ("keen", 100.0))
    }
    chosen = deal_out(choices, 10)
    assert (chosen["dull"].n_bytes, chosen["keen"].n_bytes) == (2, 8)


def test_settings_are_those_that_fit_the_columns() -> None:
    assert {settings.group_size for settings in settings_for(96)} == {32}
    assert len(settings_for(128)) == 18


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 2}
    return write_checkpoint(tmp_path_factory.mktemp("allocation"), **sizes, head_dim=32)


@pytest.mark.parametrize("rounding", ["nearest", "fitted", "gptq"])
@pytest.mark.parametrize("target", [3.5, 5.0])
def test_the_budget_is_kept_and_used(checkpoint: Path, target: float, rounding: str) -> None:
    source = open_checkpoint(checkpoint)
    made = allocate(source, windows(), target, rounding=rounding, dtype=mx.bfloat16)  # pyright: ignore
    bits = bits_per_weight(source.config, made.settings.get)
    assert target - 0.2 < bits <= target


def test_sensitivities_are_what_compare_would_measure(checkpoint: Path) -> None:
    from helium_mlx.model.loading import load_model
    from helium_mlx.model.losses import mean_divergence

    source, held_out = open_checkpoint(checkpoint), windows().held_out
    made = allocate(source, windows(), 4.0, rounding="nearest", dtype=mx.float32)
    reference, candidate = load_model(source, dtype="float32"), load_model(source, dtype="float32")
    down = candidate.model.layers[0].mlp.down_proj
    weight = down.weight  # pyright: ignore[reportFunctionMemberAccess]
    down.weight = mx.dequantize(*mx.quantize(weight, 32, 3), 32, 3)  # pyright: ignore[reportFunctionMemberAccess]
    expected = mean_divergence(lambda ids: reference(ids).logits, lambda ids: candidate(ids).logits, held_out)
    assert made.sensitivities["model.layers.0.mlp.down_proj"] == pytest.approx(expected, rel=1e-2)


def test_a_tied_head_is_measured_with_its_embedding(tmp_path: Path) -> None:
    source = open_checkpoint(write_checkpoint(tmp_path, tie_word_embeddings=True))
    made = allocate(source, windows(), 6.0, rounding="gptq", dtype=mx.bfloat16)
    assert made.sensitivities["model.embed_tokens"] > 0
    assert "lm_head" not in made.settings


def test_too_small_a_target_is_refused_with_the_least_there_is(checkpoint: Path) -> None:
    with pytest.raises(QuantizationError, match=r"target_bpw is 1.5; the least that this model can take is 2\.\d+"):
        allocate(open_checkpoint(checkpoint), windows(), 1.5, rounding="nearest", dtype=mx.bfloat16)


def test_too_large_a_target_is_refused_with_the_most_there_is(checkpoint: Path) -> None:
    with pytest.raises(QuantizationError, match=r"target_bpw is 12; the most that this model can take is 9\.\d+"):
        allocate(open_checkpoint(checkpoint), windows(), 12, rounding="nearest", dtype=mx.bfloat16)


def test_progress_goes_to_its_end(checkpoint: Path) -> None:
    told: list[tuple[int, int]] = []
    note = lambda done, total: told.append((done, total))  # noqa: E731
    allocate(open_checkpoint(checkpoint), windows(), 4, rounding="nearest", dtype=mx.bfloat16, on_progress=note)
    done, totals = zip(*told, strict=True)
    assert list(done) == sorted(set(done)) and len(set(totals)) == 1
    assert (done[0], done[-1]) == (0, totals[0])
    # None of its steps is most of the work.
    assert max(after - before for before, after in pairwise(done)) < totals[0] / 3


def test_the_same_comes_out_twice(checkpoint: Path) -> None:
    first, second = (
        allocate(open_checkpoint(checkpoint), windows(), 4.0, rounding="gptq", dtype=mx.bfloat16) for _ in range(2)
    )
    assert first.settings == second.settings
    assert first.sensitivities == second.sensitivities
