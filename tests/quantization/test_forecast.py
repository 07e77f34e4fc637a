"""How long calibrated work is said to take: with clocks that the tests turn, so that no machine is too busy for it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import pytest
from tiny_checkpoints import write_checkpoint

from helium_mlx.checkpoint.checkpoint import open_checkpoint
from helium_mlx.checkpoint.quantization_settings import QuantizationSettings
from helium_mlx.quantization import bit_allocation, calibrated_rounding, gptq
from helium_mlx.quantization.bit_allocation import allocate
from helium_mlx.quantization.calibrated_rounding import RoundingOutcome, rounded_rows
from helium_mlx.quantization.calibration import Windows
from helium_mlx.quantization.forecast import forecast
from helium_mlx.quantization.layer_walk import LayerWalk, Stage, Stream

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that both modules see; it stands still but for what a test adds."""
    now = [100.0]
    for module in (calibrated_rounding, bit_allocation):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    return now


@pytest.fixture
def windows() -> Windows:
    made = [mx.array([[1, *range(3 + row, 23 + row)]]) for row in range(8)]
    return Windows(made[:6], made[6:])


def add(clock: list[float], function: Callable[..., object], seconds: float) -> Callable[..., object]:
    def slower(*arguments: object, **options: object) -> object:
        clock[0] += seconds
        return function(*arguments, **options)

    return slower


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (3, "less than 10 seconds"), (12, "about 10 seconds"), (88, "about 90 seconds"), (94, "about 2 minutes"),
        (2400, "about 40 minutes"), (5300, "about 88 minutes"), (5500, "about 1.5 hours"), (9000, "about 2.5 hours"),
        (40_000, "about 11 hours"),
    ],
)  # fmt: skip
def test_a_forecast_is_in_words(seconds: float, words: str) -> None:
    assert forecast("Rounding", seconds, 2_174_000_000) == f"Rounding takes {words} for 2.2 billion weights"


def test_few_weights_are_millions() -> None:
    assert forecast("Choosing bits", 3, 1_806_000).endswith("for 1.8 million weights")


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("tied", [False, True])
def test_rounding_is_forecast_from_its_first_layer_and_the_heads_first_block(
    clock: list[float], windows: Windows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: int, tied: bool
) -> None:
    source = write_checkpoint(tmp_path, **SIZES, num_hidden_layers=layers, tie_word_embeddings=tied)
    monkeypatch.setattr(calibrated_rounding, "BLOCK_ROWS", 8)
    monkeypatch.setattr(LayerWalk, "advance", add(clock, LayerWalk.advance, 5.0))
    monkeypatch.setattr(gptq, "rounded", add(clock, gptq.rounded, 30.0))
    began, told = clock[0], list[tuple[float, float]]()
    settings = QuantizationSettings(32, 4)
    rows = rounded_rows(
        open_checkpoint(source), lambda path: settings, mx.bfloat16, rounding="gptq", windows=windows,
        outcome=RoundingOutcome(), on_forecast=lambda seconds: told.append((clock[0] - began, seconds)),
    )  # fmt: skip
    assert len(list(rows)) > 0
    ((said_after, seconds),) = told
    probe = 0 if tied else 30
    assert seconds + probe == clock[0] - began
    assert said_after == (4 * 5 * 5.0 + 7 * 30.0) + probe


def test_choosing_bits_is_forecast_from_its_first_layer(
    clock: list[float], windows: Windows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = LayerWalk.advance

    def slower(self: LayerWalk, stream: Stream, stage: Stage, weights: Mapping[str, mx.array]) -> None:
        clock[0] += sum(weight.size for weight in weights.values())
        advance(self, stream, stage, weights)

    monkeypatch.setattr(LayerWalk, "advance", slower)
    monkeypatch.setattr(gptq, "factored", add(clock, gptq.factored, 1000.0))
    told, totals = list[float](), set[int]()
    allocate(
        open_checkpoint(write_checkpoint(tmp_path, **SIZES, num_hidden_layers=3)), windows, 4.0, rounding="gptq",
        dtype=mx.bfloat16, on_progress=lambda done, total: totals.add(total), on_forecast=told.append,
    )  # fmt: skip
    assert told == [pytest.approx(totals.pop() + 3 * 4 * 1000.0)]
