"""Bits and group size of each module, chosen so that a quantized model of a given size is as near as possible.

First every module is measured: it alone is rounded to a few bits, and what that does to the model's next-token
distributions is a KL divergence on held-out calibration text. All these models go through the layers side by side, so
that each matrix is read once; the cost is a forward pass of half the model for every module.

Then that figure is carried over to all bits and group sizes: to second order it goes with the squared error of the
module's outputs, which is estimated for each setting from some rows and the second moments of the module's inputs (with
GPTQ, from their factor: see `gptq.py`). Errors of different modules are taken to add up. What this leaves out: that
errors meet, and that a head rounded with GPTQ gains more than other matrices.

Last, bits are dealt out: from the smallest setting of all, one after the other the change that gains most a byte.
"""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx

from helium_mlx.checkpoint import layout
from helium_mlx.checkpoint.checkpoint import Checkpoint
from helium_mlx.checkpoint.quantization_settings import MODES, QuantizationSettings, unquantized
from helium_mlx.checkpoint.row_blocks import dequantized
from helium_mlx.errors import QuantizationError
from helium_mlx.model.losses import RunningDivergence
from helium_mlx.option_values import OnProgress
from helium_mlx.quantization import gptq
from helium_mlx.quantization.calibrated_rounding import cross_moments
from helium_mlx.quantization.calibration import Windows
from helium_mlx.quantization.forecast import OnForecast
from helium_mlx.quantization.layer_walk import EMBEDDING, EmbeddingTable, LayerWalk, Stage, Stream, walk
from helium_mlx.quantization.plain import quantized
from helium_mlx.quantization.rounding import Rounding, fitted

# What a module alone is rounded to, plainly: coarse enough to be measured, fine enough to be small.
MEASURED_BITS = 3

# Of a matrix, so many rows are rounded in every way there is.
ROWS_TRIED = 256

# What the hidden states of all models may take together, and the tokens that each is run over for that.
MEASURE_BYTES = 2_000_000_000
MIN_TOKENS, MAX_TOKENS = 256, 4096


@dataclass(frozen=True)
class Choice:
    """One way to store a module: its bytes, and the KL divergence, in nats a token, that it is expected to cost."""

    settings: QuantizationSettings
    n_bytes: int
    kl: float


@dataclass(frozen=True)
class Allocation:
    """What was chosen, by module; what each costs at `MEASURED_BITS`, measured; and the seconds that took."""

    settings: Mapping[str, QuantizationSettings]
    sensitivities: Mapping[str, float]
    seconds: float


def allocate(
    checkpoint: Checkpoint,
    windows: Windows,
    target_bpw: float,
    *,
    rounding: Rounding,
    dtype: mx.Dtype,
    on_progress: OnProgress | None = None,
    on_forecast: OnForecast | None = None,
) -> Allocation:
    """Choose the settings of each module of a causal LM for at most `target_bpw` bits per weight, all tensors counted.

    `rounding` is how the modules will be rounded, `dtype` that of scales, biases and what is not quantized.
    `on_progress(done, total)` counts products of a weight with a token; `on_forecast` is called after the first layer.

    Raises QuantizationError for a target below what the smallest setting takes, or above what the largest does, and
    CheckpointError for weights that are not finite.
    """
    start = time.perf_counter()
    shapes = dict(layout.weight_shapes(checkpoint.config))
    tensors = dict(layout.tensor_shapes(checkpoint.config, unquantized))
    sizes = {name: math.prod(shape) for name, shape in tensors.items()}
    rest = dtype.size * sum(size for name, size in sizes.items() if name.rpartition(".")[0] not in shapes)
    budget = int(target_bpw * sum(sizes.values()) / 8) - rest
    smallest, largest = (
        sum(pick(_bytes(each, shape, dtype) for each in settings_for(shape[1])) for shape in shapes.values())
        for pick in (min, max)
    )
    for extreme, what, is_beyond in ((smallest, "least", budget < smallest), (largest, "most", budget > largest)):
        if is_beyond:
            limit = 8 * (extreme + rest) / sum(sizes.values())
            raise QuantizationError(f"target_bpw is {target_bpw:g}; the {what} that this model can take is {limit:.3f}")
    with walk(checkpoint) as layers:
        measured = _Measurement(layers, windows, rounding, dtype)
        choices = measured.choices(on_progress, on_forecast)
    chosen = deal_out(choices, budget)
    return Allocation(
        {path: choice.settings for path, choice in chosen.items()},
        measured.sensitivities,
        round(time.perf_counter() - start, 3),
    )


def settings_for(columns: int) -> list[QuantizationSettings]:
    """Return every affine settings that fits a matrix of so many columns."""
    bits, group_sizes = MODES["affine"]
    return [QuantizationSettings(size, width) for size in group_sizes if columns % size == 0 for width in bits]


def deal_out(choices: Mapping[str, Sequence[Choice]], budget: int) -> dict[str, Choice]:
    """Return a choice for each module, of at most `budget` bytes together, by the largest gain a byte.

    The smallest choices together must fit.
    """
    chosen = {path: min(each, key=lambda choice: (choice.n_bytes, choice.kl)) for path, each in choices.items()}
    left = budget - sum(choice.n_bytes for choice in chosen.values())
    assert left >= 0, "not even the smallest choices fit"
    while True:
        best = max(
            (
                (_gain_per_byte(chosen[path], choice), path, choice)
                for path, each in choices.items()
                for choice in each
                if choice.kl < chosen[path].kl and choice.n_bytes - chosen[path].n_bytes <= left
            ),
            key=lambda step: step[0],
            default=None,
        )
        if best is None:
            return chosen
        _, path, choice = best
        left -= choice.n_bytes - chosen[path].n_bytes
        chosen[path] = choice


def _gain_per_byte(old: Choice, new: Choice) -> float:
    # What gains and is no larger comes first.
    extra = new.n_bytes - old.n_bytes
    return (old.kl - new.kl) / extra if extra > 0 else float("inf")


@dataclass(frozen=True)
class _Errors:
    """Expected squared errors of a module's outputs: as it is measured, and by setting."""

    measured: float
    by_settings: Mapping[QuantizationSettings, float]


class _Measurement:
    """Streams through the model: the source on windows to fit to, for second moments; on held-out ones, the source and
    one for each module that is rounded alone.
    """

    def __init__(self, layers: LayerWalk, windows: Windows, rounding: Rounding, dtype: mx.Dtype) -> None:
        self._layers, self._rounding, self._dtype = layers, rounding, dtype
        config = layers.config
        self._shapes = dict(layout.weight_shapes(config))
        per_token = 4 * len(self._shapes) * (config.hidden_size + config.intermediate_size)
        measured = _first(windows.held_out, max(MIN_TOKENS, min(MAX_TOKENS, MEASURE_BYTES // per_token)))
        table = EmbeddingTable(layers, (*windows.fitted, *measured))
        self._fit, self._source = table.stream(windows.fitted), table.stream(measured)
        rounded_table = table.changed(lambda weight: self._plain(weight, _measured_settings(weight)))
        self._rounded = {EMBEDDING: rounded_table.stream(measured)}
        self._errors: dict[str, _Errors] = {}
        self.sensitivities: dict[str, float] = {}
        self._on_progress: OnProgress | None = None
        # Products of a weight with a token, and what took how many seconds so far.
        self._products, self._all_products = 0, 0
        self._trying_settings, self._multiplying = 0.0, 0.0

    def choices(
        self, on_progress: OnProgress | None = None, on_forecast: OnForecast | None = None
    ) -> dict[str, list[Choice]]:
        """Run everything through the model; return what each module could be."""
        weight = next(self._layers.rows(EMBEDDING))
        self._errors[EMBEDDING] = self._errors_of(weight, mx.ones(weight.shape[1]), mx.ones(weight.shape[1]))
        for stream in (self._fit, self._source, self._rounded[EMBEDDING]):
            self._layers.begin(stream)
        stages = list(self._layers.stages())
        self._on_progress, self._all_products = on_progress, self._n_products(stages)
        self._multiplied(0)
        for stage in stages:
            self._pass(stage)
            if stage.is_end_of_layer and stage.index == 0 and on_forecast:
                on_forecast(self._forecast())
        self._measure_head()
        return {path: self._choices_of(path) for path in self._shapes}

    def _forecast(self) -> float:
        """Return, after the first layer, the seconds for all: products grow from layer to layer, the rest does not."""
        per_product = self._multiplying / self._products
        return self._layers.config.num_hidden_layers * self._trying_settings + self._all_products * per_product

    def _multiplied(self, products: int) -> None:
        self._products += products
        if self._on_progress:
            self._on_progress(self._products, self._all_products)

    def _n_products(self, stages: Sequence[Stage]) -> int:
        """Return how many products of a weight with a token of a stream will be computed."""
        products, n_streams = 0, len(self._rounded)
        for stage in stages:
            # All that were rounded before, the source twice, and one for each of the stage's own.
            products += self._size(stage.paths) * (n_streams + 2 + len(stage.paths))
            n_streams += len(stage.paths)
        return products + self._size([self._layers.head_path]) * (n_streams + 1)

    def _size(self, paths: Iterable[str]) -> int:
        return sum(math.prod(self._shapes[path]) for path in paths)

    def _pass(self, stage: Stage) -> None:
        began = time.perf_counter()
        weights = {path: self._layers.weight(path) for path in stage.paths}
        importances = self._importances()
        for path, weight in weights.items():
            self._errors[path] = self._errors_of(weight, *importances)
        tried = time.perf_counter()
        begun = {path: Stream(self._source.hidden, self._source.inputs) for path in stage.paths}
        for stream in (*self._rounded.values(), self._fit, self._source):
            self._layers.advance(stream, stage, weights)
            self._multiplied(self._size(stage.paths))
        for path, stream in begun.items():
            alone = {path: self._plain(weights[path], _measured_settings(weights[path]))}
            self._layers.advance(stream, stage, weights | alone)
            self._multiplied(self._size(stage.paths))
        self._rounded |= begun
        self._trying_settings += tried - began
        self._multiplying += time.perf_counter() - tried

    def _measure_head(self) -> None:
        path = self._layers.head_path
        n_tokens = self._source.rows.shape[0]
        divergences = {path: RunningDivergence(n_tokens) for path in (*self._rounded, path)}
        importances = self._importances()
        for weight in self._layers.rows(path):
            plain = self._plain(weight, _measured_settings(weight))
            if path != EMBEDDING and path not in self._errors:
                self._errors[path] = self._errors_of(weight, *importances)
            logits = self._source.rows @ weight.T
            for name, stream in self._rounded.items():
                # A tied head is rounded along with its embedding.
                own = plain if name == path else weight
                divergences[name].add(logits, stream.rows @ own.T)
            if path != EMBEDDING:
                divergences[path].add(logits, self._source.rows @ plain.T)
            self._multiplied(weight.size * (len(self._rounded) + 1))
        self.sensitivities = {name: divergences[name].mean for name in self._shapes}

    def _importances(self) -> tuple[mx.array, mx.array]:
        """Return what an error of each column costs as it is measured, and as it will be rounded."""
        hessian = cross_moments(self._fit.inputs, self._fit.inputs)
        plain = mx.diag(hessian)
        return plain, gptq.factored(hessian).importance if self._rounding == "gptq" else plain

    def _errors_of(self, weight: mx.array, measured: mx.array, importance: mx.array) -> _Errors:
        rows = weight[:: -(-weight.shape[0] // ROWS_TRIED)]

        def error(values: mx.array, counts: mx.array) -> float:
            return (counts * (values - rows).square()).mean().item()  # pyright: ignore[reportReturnType]

        return _Errors(
            error(self._plain(rows, _measured_settings(rows)), measured),
            {each: error(self._read(rows, each, importance), importance) for each in settings_for(rows.shape[1])},
        )

    def _choices_of(self, path: str) -> list[Choice]:
        errors, shape = self._errors[path], self._shapes[path]
        # A module without errors is exact however it is stored.
        scale = self.sensitivities[path] / errors.measured if errors.measured > 0 else 0.0
        return [
            Choice(settings, _bytes(settings, shape, self._dtype), scale * error)
            for settings, error in errors.by_settings.items()
        ]

    def _plain(self, weight: mx.array, settings: QuantizationSettings) -> mx.array:
        return dequantized(quantized(weight, settings, self._dtype), settings)

    def _read(self, weight: mx.array, settings: QuantizationSettings, importance: mx.array) -> mx.array:
        if self._rounding == "nearest":
            return self._plain(weight, settings)
        return dequantized(fitted(weight, settings, self._dtype, importance=importance), settings)


def _measured_settings(weight: mx.array) -> QuantizationSettings:
    sizes = [size for size in (64, 32) if weight.shape[1] % size == 0]
    return QuantizationSettings(sizes[0], MEASURED_BITS)


def _first(windows: Sequence[mx.array], n_tokens: int) -> list[mx.array]:
    """Return as many windows as have `n_tokens` together, evenly spread, and at least one."""
    total = sum(window.shape[1] for window in windows)
    step = max(1, -(-total // n_tokens))
    return list(windows[::step])


def _bytes(settings: QuantizationSettings, shape: tuple[int, int], dtype: mx.Dtype) -> int:
    parts = settings.packed_shapes(*shape)
    return sum((4 if suffix == "weight" else dtype.size) * math.prod(part) for suffix, part in parts.items())
