"""The stored half of the parity grid: every case against what transformers computed, without torch."""

import json
from itertools import combinations, product

import mlx.core as mx
import mlx.nn as nn
import pytest
from processes import run_code

from helium_mlx import selfcheck
from helium_mlx.diagnostics import selfcheck_runs
from helium_mlx.diagnostics.selfcheck_cases import AXES, HEAD_CASES, PADDING, grid, probes, real_tokens
from helium_mlx.diagnostics.selfcheck_runs import (
    Feature,
    Measurement,
    by_feature,
    most_failing,
    relative_error,
    stored_half,
)
from helium_mlx.model import activations
from helium_mlx.model import helium as model
from helium_mlx.model.rope import RotaryEmbedding
from helium_mlx.selfcheck import table


@pytest.fixture(scope="module")
def features() -> list[Feature]:
    return by_feature(stored_half())


def failing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], feature: str = "") -> str:
    """Run the command on a few cases, those of a feature among them; it must fail. Return its last line."""
    cases = grid()
    few = [*cases[:6], *[case for case in cases[6:] if feature in case.features][:4]]
    monkeypatch.setattr(selfcheck_runs, "grid", lambda: few)
    heads = [case for case in HEAD_CASES if f": {case.name}" in feature]
    monkeypatch.setattr(selfcheck_runs, "HEAD_CASES", heads)
    assert selfcheck.main([]) == 1
    printed = capsys.readouterr()
    assert "FAIL" in printed.out
    assert "Traceback" not in printed.err
    return printed.err.splitlines()[-1]


def test_every_feature_is_within_bounds(features: list[Feature]) -> None:
    assert not [feature for feature in features if feature.failed], table(features)


def test_every_value_of_every_axis_and_every_head_has_a_row(features: list[Feature]) -> None:
    rows = {feature.feature: feature for feature in features}
    values = {f"{axis}: {value}" for axis in AXES if axis != "dtype" for value in AXES[axis]}
    heads = {f"head: {case.name}" for case in HEAD_CASES} | {
        f"gradients: {case.name}" for case in HEAD_CASES if case.gradients
    }
    assert set(rows) == values | heads | {"output: hidden states", "output: attentions"}
    for value in values:
        assert rows[value].worst_float32 is not None
        assert rows[value].worst_bfloat16 is not None


def test_every_two_values_of_two_axes_meet() -> None:
    cases = [vars(case) for case in grid()]
    for a, b in combinations(AXES, 2):
        missing = set(product(AXES[a], AXES[b])) - {(case[a], case[b]) for case in cases}
        if (a, b) == ("mask", "feed"):
            missing -= {("packed positions", feed) for feed in AXES["feed"] if feed != "cold"}
        assert not missing
    assert len(cases) < 300


@pytest.mark.parametrize("mask", AXES["mask"])
def test_only_real_tokens_are_compared(mask: str) -> None:
    real, places = real_tokens(mask), probes(mask)
    assert mx.take_along_axis(real, places, axis=1).all()
    assert (~real).sum().item() == (PADDING if "pad" in mask else 0)


def test_the_command_passes_and_loads_no_torch() -> None:
    code = (
        "import sys; from helium_mlx import selfcheck; status = selfcheck.main(['--json']);"
        "assert not {'torch', 'transformers', 'mlx_lm'} & set(sys.modules); sys.exit(status)"
    )
    result = run_code(code)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["passed"]
    assert report["seconds"] < 60
    assert all(not feature["failed"] for feature in report["features"])


def test_the_other_rope_pairing_is_seen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    original = RotaryEmbedding.__init__

    def flipped(self: RotaryEmbedding, *arguments: object, **keywords: object) -> None:
        original(self, *arguments, **keywords)  # pyright: ignore[reportArgumentType]
        self.interleaved = not self.interleaved

    monkeypatch.setattr(RotaryEmbedding, "__init__", flipped)
    last = failing(monkeypatch, capsys)
    assert last.startswith("error: ")
    assert "family: helium" in last
    assert "family: llama" in last


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        ("helium_mlx.model.rope.RotaryEmbedding._yarn_wavelengths", "rope: yarn"),
        ("helium_mlx.model.rope.RotaryEmbedding._llama3_wavelength", "rope: llama3"),
        ("helium_mlx.model.activations._mish", "activation: mish"),
        ("helium_mlx.kv_cache.masks.packed_sequences", "mask: packed positions"),
        ("helium_mlx.model.losses.sequence_classification_loss", "gradients: regression"),
        ("mlx.core.stop_gradient", "gradients: causal LM, padding as text"),
    ],
)
def test_what_is_broken_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], broken: str, named: str
) -> None:
    replacements = {
        "_yarn_wavelengths": lambda self, plain, theta, factor: plain,
        "_llama3_wavelength": lambda self, wavelength, factor: wavelength,
        "_mish": None,
        "packed_sequences": lambda position_ids: None,
        "sequence_classification_loss": lambda logits, labels, problem_type: logits.sum(),
        "stop_gradient": lambda x: x,
    }
    replacement = replacements[broken.rpartition(".")[2]]
    if replacement is None:
        model._gating.cache_clear()
        monkeypatch.setitem(activations.ACTIVATIONS, "mish", mx.tanh)
    else:
        monkeypatch.setattr(broken, replacement)
    try:
        assert named in failing(monkeypatch, capsys, named)
    finally:
        if replacement is None:
            monkeypatch.undo()
            model._gating.cache_clear()


def test_another_eps_is_seen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    original = nn.RMSNorm.__init__
    monkeypatch.setattr(nn.RMSNorm, "__init__", lambda self, dims, eps: original(self, dims, eps=eps * 1.01))
    assert "family: helium" in failing(monkeypatch, capsys)


def measured(error: float, *features: str) -> Measurement:
    return Measurement("case", "logits", features, "float32", error, 1.0)


def test_the_most_failing_are_what_fails_most_often() -> None:
    rows = by_feature([measured(2, "a: 1", "b: 1"), measured(0, "a: 1", "b: 2"), measured(0, "a: 2", "b: 2")])
    assert most_failing(rows) == ["b: 1"]


@pytest.mark.parametrize("error", [float("nan"), float("inf"), 1.1])
def test_what_is_no_number_fails(error: float) -> None:
    row = by_feature([measured(0, "a: 1"), measured(error, "a: 1")])[0]
    assert row.failed == 1
    assert "FAIL" in table([row])


def test_errors_of_what_cannot_be_compared_are_nan() -> None:
    assert relative_error(mx.zeros((2,)), mx.zeros((2, 1))) != 0
    error = relative_error(mx.array([1.0, mx.nan]), mx.array([1.0, 2.0]))
    assert not error <= 1e9
