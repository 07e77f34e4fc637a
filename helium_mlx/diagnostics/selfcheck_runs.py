"""Runs the cases of `selfcheck_cases.py` and compares with stored outputs of transformers.

Checkpoints go through the disk, as a user's would. The outputs in `selfcheck_reference.safetensors` are written by
`tests/reference/make_selfcheck_reference.py`. An error is max |result - reference| / max |reference|. The parity grid
(`tests/parity/grid.py`) measures with the functions here.
"""

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from helium_mlx import backend
from helium_mlx.checkpoint import layout
from helium_mlx.diagnostics.selfcheck_cases import (
    HEAD_CASES,
    Case,
    HeadCase,
    calls,
    grid,
    head_inputs,
    probes,
    write_case,
    write_checkpoint,
)
from helium_mlx.kv_cache.cache import KVCache
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.model.pretrained import HeliumPreTrainedModel
from helium_mlx.model.streamed import MODEL_CLASSES

REFERENCE_FILE = Path(__file__).parent / "selfcheck_reference.safetensors"

# How many values of each gradient are stored, evenly spread over the tensor.
GRADIENT_SAMPLES = 48


@dataclass(frozen=True)
class Measurement:
    """One comparison; `features` are what it would put in doubt."""

    case: str
    what: str
    features: tuple[str, ...]
    dtype: str
    error: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the limit; NaN is not."""
        return self.error <= self.limit


@dataclass(frozen=True)
class Feature:
    """A row of the table: the worst of all comparisons that a feature takes part in."""

    feature: str
    comparisons: int
    failed: int
    worst_float32: float | None
    worst_bfloat16: float | None
    worst_of_limit: float
    where: str


def limits() -> dict[str, float]:
    """Return the largest errors allowed on this backend: the one place where backends differ.

    On Metal and CUDA float32 is IEEE, but `exp`, `sin` and the like are the fast ones, and sums are taken in another
    order: ten times that, which a wrong formula still exceeds by far. That presumes that matrix products are not
    rounded to TF32 (`helium_mlx/selfcheck.py` sees to it). bfloat16's own rounding dwarfs all of this.
    """
    slack = 1 if backend.is_cpu() else 10
    return {"float32": 1e-5 * slack, "bfloat16": 2e-2, "gradients": 1e-4 * slack}


@dataclass(frozen=True)
class CaseOutputs:
    """What a model made of a case: logits (B, L, V), hidden states (layers + 1, B, L, D), each call's attentions."""

    logits: mx.array
    hidden_states: mx.array
    attentions: list[mx.array]


def run_case(case: Case, *, attentions: bool = False) -> CaseOutputs:
    """Run a case of the grid, in the case's dtype."""
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = write_case(Path(directory), case)
        model = HeliumForCausalLM.from_pretrained(checkpoint, dtype=case.dtype)
    cache: list[KVCache] | None = None
    logits, hidden_states, all_attentions = [], [], []
    for call in calls(case):
        output = model(
            call.input_ids,
            call.attention_mask,
            call.position_ids,
            cache,
            use_cache=case.mask != "packed positions",
            output_hidden_states=True,
            output_attentions=attentions,
        )
        cache = output.past_key_values
        assert output.hidden_states is not None
        logits.append(output.logits)
        hidden_states.append(mx.stack(list(output.hidden_states)))
        all_attentions += [mx.stack(list(output.attentions))] if output.attentions is not None else []
    return CaseOutputs(mx.concatenate(logits, axis=1), mx.concatenate(hidden_states, axis=2), all_attentions)


@dataclass(frozen=True)
class HeadOutputs:
    """What a model with a head made of a case; gradients by names on disk, empty unless asked for."""

    loss: mx.array
    logits: mx.array
    gradients: dict[str, mx.array]


def run_head(case: HeadCase) -> HeadOutputs:
    """Run a head's case, in float32, with the gradients of all parameters if the case wants them."""
    model_class = cast(type[HeliumPreTrainedModel], MODEL_CLASSES[case.architecture])
    with tempfile.TemporaryDirectory() as directory:
        model = model_class.from_pretrained(write_checkpoint(Path(directory), case.config_values, case.architecture))
    inputs = head_inputs(case)
    output = model(**inputs, use_cache=False)
    gradients: dict[str, mx.array] = {}
    if case.gradients:
        _, tree = nn.value_and_grad(model, lambda: model(**inputs, use_cache=False).loss)()
        merged = dict(tree_flatten(tree))
        gradients = layout.split_projections(cast(dict[str, mx.array], merged), model.config)
    return HeadOutputs(output.loss, output.logits, gradients)


def relative_error(result: mx.array, reference: mx.array) -> float:
    """Return max |difference| / max |reference|; NaN where shapes differ or something is not finite."""
    if result.shape != reference.shape:
        return float("nan")
    result, reference = result.astype(mx.float32), reference.astype(mx.float32)
    largest = mx.abs(reference).max().item()
    difference = mx.abs(result - reference).max().item()
    return float(difference) / float(largest) if largest else float(difference)  # pyright: ignore[reportArgumentType]


def at_probes(x: mx.array, mask: str) -> mx.array:
    """Return (..., ROWS, 2, D) of (..., ROWS, LENGTH, D): the positions that are stored."""
    places = probes(mask)[:, :, None]
    return mx.take_along_axis(x, mx.broadcast_to(places, (*x.shape[:-2], *places.shape[-2:])), axis=-2)


def sampled(gradient: mx.array) -> mx.array:
    """Return the values of a gradient that are stored; an odd stride, so that no row or column is left out."""
    flat = gradient.reshape(-1)
    return flat[:: max(flat.size // GRADIENT_SAMPLES - 1, 0) | 1]


def stores_details(case: Case) -> bool:
    """Return whether hidden states and attentions of a case are stored: one in six, of those in float32."""
    return case.dtype == "float32" and case.mask != "4-D boolean mask" and sum(map(ord, case.name)) % 6 == 0


def stored_half() -> list[Measurement]:
    """Run every case and compare with what is stored."""
    reference = cast(dict[str, mx.array], mx.load(str(REFERENCE_FILE)))
    measurements = []
    for case in grid():
        measurements += _measure_case(case, reference)
    for case in HEAD_CASES:
        measurements += _measure_head(case, reference)
    return measurements


def _measure_case(case: Case, reference: dict[str, mx.array]) -> list[Measurement]:
    limit = limits()[case.dtype]
    run = run_case(case)
    found = [
        ("logits", case.features, relative_error(at_probes(run.logits, case.mask), reference[f"{case.name}.logits"]))
    ]
    if stores_details(case):
        hidden_states = at_probes(run.hidden_states, case.mask)
        error = relative_error(hidden_states, reference[f"{case.name}.hidden_states"])
        found.append(("hidden states", ("output: hidden states",), error))
        last_rows = run_case(case, attentions=True).attentions[-1][..., -1, :]
        error = relative_error(last_rows[:, :1], reference[f"{case.name}.attentions"])
        found.append(("attentions", ("output: attentions",), error))
    return [Measurement(case.name, what, features, case.dtype, error, limit) for what, features, error in found]


def _measure_head(case: HeadCase, reference: dict[str, mx.array]) -> list[Measurement]:
    run, feature = run_head(case), (f"head: {case.name}",)
    logits = run.logits if run.logits.ndim == 2 else at_probes(run.logits, case.padding)
    found = [
        ("logits", feature, relative_error(logits, reference[f"{case.name}.logits"]), "float32"),
        ("loss", feature, relative_error(run.loss, reference[f"{case.name}.loss"]), "float32"),
    ]
    prefix = f"{case.name}.gradient."
    for name in (key.removeprefix(prefix) for key in reference if key.startswith(prefix)):
        gradient = run.gradients.get(name)
        error = float("nan") if gradient is None else relative_error(sampled(gradient), reference[prefix + name])
        found.append((f"gradient of {name}", (f"gradients: {case.name}",), error, "gradients"))
    return [Measurement(case.name, what, features, "float32", error, limits()[limit])
            for what, features, error, limit in found]  # fmt: skip


def by_feature(measurements: Iterable[Measurement]) -> list[Feature]:
    """Return the rows of the table, in the order in which features come up, axis by axis."""
    groups: dict[str, list[Measurement]] = {}
    for measurement in measurements:
        for feature in measurement.features:
            groups.setdefault(feature, []).append(measurement)
    axes = list(dict.fromkeys(feature.partition(":")[0] for feature in groups))
    ordered = sorted(groups, key=lambda feature: axes.index(feature.partition(":")[0]))
    return [_feature(name, groups[name]) for name in ordered]


def _feature(name: str, group: list[Measurement]) -> Feature:
    worst = max(group, key=_severity)
    return Feature(
        feature=name,
        comparisons=len(group),
        failed=sum(not measurement.passed for measurement in group),
        worst_float32=_worst_error(group, "float32"),
        worst_bfloat16=_worst_error(group, "bfloat16"),
        worst_of_limit=_severity(worst),
        where=f"{worst.case}: {worst.what}",
    )


def _severity(measurement: Measurement) -> float:
    ratio = measurement.error / measurement.limit
    return ratio if ratio == ratio else float("inf")


def _worst_error(group: list[Measurement], dtype: str) -> float | None:
    found = [measurement for measurement in group if measurement.dtype == dtype]
    return max(found, key=_severity).error if found else None


def most_failing(features: list[Feature]) -> list[str]:
    """Return the features that failed in the largest share of their comparisons, which is where to look."""
    shares = {f.feature: f.failed / f.comparisons for f in features if f.failed}
    return [name for name, share in shares.items() if share == max(shares.values())]
