"""Rounds a causal LM's matrices to what they are given in use: layer by layer, once through, streamed.

Sequential: what a matrix is given comes from the layers before it as they were rounded already. With GPTQ, what it is
to give in return is what the source's own matrix gives from the source's own inputs, so that every layer makes up for
those before it as far as a matrix can, by least squares; where its outputs are added to the residual stream, for what
that lacks, too (compare GPTAQ, arXiv:2504.02692). Every matrix is rounded plainly, too, and the calibrated rounding is
kept where it errs less on windows that nothing was fitted to. The same windows say, at the end, how far either model is
from its source.

The embedding is fitted without importances: its rows are used one by one, so there are no inputs to weigh them by.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import mlx.core as mx

from helium_mlx.checkpoint.checkpoint import Checkpoint
from helium_mlx.checkpoint.quantization_settings import ModuleSettings, QuantizationSettings
from helium_mlx.checkpoint.row_blocks import dequantized
from helium_mlx.model.losses import LogSum, RunningDivergence
from helium_mlx.quantization import gptq
from helium_mlx.quantization.calibration import Windows
from helium_mlx.quantization.forecast import OnForecast
from helium_mlx.quantization.layer_walk import EMBEDDING, EmbeddingTable, LayerWalk, Stage, walk
from helium_mlx.quantization.plain import quantized
from helium_mlx.quantization.rounding import Rounding, fitted

Parts = dict[str, mx.array]

# A head's rows are rounded in so many blocks, each for the tokens at which its logits count, of so many rows at least.
HEAD_BLOCKS = 128
BLOCK_ROWS = 32

# How much of a uniform distribution the head's logits are taken to count for besides, everywhere: for rows that the
# calibration text hardly has, this makes all tokens count alike.
EVERYWHERE = 0.03


@dataclass
class RoundingOutcome:
    """What a calibrated rounding came to, complete once all rows have been taken.

    `plain_kl` and `kl` are mean KL divergences from the source in nats a token, on the held-out windows, with plain
    rounding and with this one; `kept_plain` are the modules of which at least some rows were rounded plainly because
    that errs less.
    """

    plain_kl: float = 0.0
    kl: float = 0.0
    kept_plain: list[str] = field(default_factory=list)

    @property
    def is_better(self) -> bool:
        """Whether the result is no further from its source than plain rounding would be."""
        return self.kl <= self.plain_kl


def rounded_rows(
    checkpoint: Checkpoint,
    settings_of: ModuleSettings,
    dtype: mx.Dtype,
    *,
    rounding: Rounding,
    windows: Windows,
    outcome: RoundingOutcome,
    on_forecast: OnForecast | None = None,
) -> Iterator[tuple[str, int, mx.array]]:
    """Yield the quantized matrices of the result as (name, first row, rows), as `converted_rows` does.

    `outcome` is filled in as the rows are taken. `on_forecast` is called after the first layer.
    """
    with walk(checkpoint) as layers:
        yield from _Rounder(layers, settings_of, dtype, rounding, outcome, windows).rows(on_forecast)


@dataclass(frozen=True)
class _Given:
    """What the matrices of a stage are rounded for: with `factor` by GPTQ, else fitted by the importance of columns.

    A matrix W is to give, from the candidate's inputs, what it gives in the source, and what the residual stream lacks
    besides: by least squares that is W (1 + `gain`) + `offset` in its stead, (columns, columns) and (rows, columns).
    """

    importance: mx.array
    factor: gptq.HessianFactor | None = None
    gain: mx.array | None = None
    offset: mx.array | None = None

    def rounded(self, weight: mx.array, settings: QuantizationSettings, dtype: mx.Dtype) -> Parts:
        """Return the parts of some rows of a matrix, float32 (rows, columns)."""
        if self.factor is None or self.gain is None:
            return fitted(weight, settings, dtype, importance=self.importance)
        wanted = weight + weight @ self.gain
        wanted = wanted if self.offset is None else wanted + self.offset
        return gptq.rounded(wanted, self.factor, settings, dtype)


class _Rounder:
    """Takes five streams through the model: the source, the baseline (plain rounding) and the candidate on held-out
    windows; the source and the candidate on those to fit to.
    """

    def __init__(
        self,
        layers: LayerWalk,
        settings_of: ModuleSettings,
        dtype: mx.Dtype,
        rounding: Rounding,
        outcome: RoundingOutcome,
        windows: Windows,
    ) -> None:
        self._layers, self._module_settings, self._dtype = layers, settings_of, dtype
        self._rounding, self._outcome = rounding, outcome
        settings = self._settings_of(EMBEDDING)
        table = EmbeddingTable(layers, (*windows.fitted, *windows.held_out))
        plain, candidate = (
            table.changed(lambda w, p=parts: self._read(p(w, settings), settings))
            for parts in (self._plain, self._fitted)
        )
        self._source, self._baseline, self._candidate = (
            each.stream(windows.held_out) for each in (table, plain, candidate)
        )
        self._fit_source, self._fit = table.stream(windows.fitted), candidate.stream(windows.fitted)

    def rows(self, on_forecast: OnForecast | None = None) -> Iterator[tuple[str, int, mx.array]]:
        """Yield (name, first row, rows) of every matrix, in the order of the forward pass."""
        began = time.perf_counter()
        yield from self._embedding_rows()
        for stream in (self._source, self._baseline, self._candidate, self._fit_source, self._fit):
            self._layers.begin(stream)
        before_layers, n_layers = time.perf_counter() - began, self._layers.config.num_hidden_layers
        for stage in self._layers.stages():
            yield from self._stage_rows(stage)
            if stage.is_end_of_layer and stage.index == 0 and on_forecast:
                a_layer = time.perf_counter() - began - before_layers
                on_forecast(before_layers + n_layers * a_layer + self._seconds_of_head())
        yield from self._head_rows()

    def _embedding_rows(self) -> Iterator[tuple[str, int, mx.array]]:
        settings, first_row = self._settings_of(EMBEDDING), 0
        for weight in self._layers.rows(EMBEDDING):
            yield from _named(EMBEDDING, first_row, self._fitted(weight, settings))
            first_row += weight.shape[0]

    def _stage_rows(self, stage: Stage) -> Iterator[tuple[str, int, mx.array]]:
        given = self._given(adds_to_residual=stage.adds_to_residual)
        lacking = self._source.lacks(self._candidate) if stage.adds_to_residual else mx.array(0.0)
        source, plain, candidate = {}, {}, {}
        for path in stage.paths:
            settings, weight = self._settings_of(path), self._layers.weight(path)
            wanted = self._source.rows @ weight.T + lacking
            parts, source[path], plain[path] = self._better(
                path, given.rounded(weight, settings, self._dtype), weight, wanted
            )
            candidate[path] = self._read(parts, settings)
            yield from _named(path, 0, parts)
        for stream, weights in (
            (self._source, source), (self._baseline, plain), (self._candidate, candidate),
            (self._fit_source, source), (self._fit, candidate),
        ):  # fmt: skip
            self._layers.advance(stream, stage, weights)

    def _head_rows(self) -> Iterator[tuple[str, int, mx.array]]:
        """Yield the head's rows, rounded block by block for the tokens at which their logits count.

        An error e of token v's logit costs p_v (1 - p_v) e^2 / 2 in KL divergence, to second order. Which v are likely
        differs from position to position, so every few rows have second moments of their own.
        """
        path, first_row = self._layers.head_path, 0
        settings, n_tokens = self._settings_of(path), self._candidate.rows.shape[0]
        plain_kl, kl = RunningDivergence(n_tokens), RunningDivergence(n_tokens)
        given = self._given(adds_to_residual=False)
        fit_curvature, held_out_curvature = (
            self._curvature(stream.rows, self._layers.rows(path)) for stream in (self._fit_source, self._source)
        )
        for weight in self._blocks(path):
            logits = self._source.rows @ weight.T
            if path == EMBEDDING:
                parts, plain = self._fitted(weight, settings), self._read(self._plain(weight, settings), settings)
            else:
                candidate = self._weighted(given, fit_curvature(weight)).rounded(weight, settings, self._dtype)
                parts, _, plain = self._better(path, candidate, weight, logits, held_out_curvature(weight))
                yield from _named(path, first_row, parts)
            plain_kl.add(logits, self._baseline.rows @ plain.T)
            kl.add(logits, self._candidate.rows @ self._read(parts, settings).T)
            first_row += weight.shape[0]
        self._outcome.plain_kl, self._outcome.kl = plain_kl.mean, kl.mean

    def _seconds_of_head(self) -> float:
        """Return how long the head's rows would take at the speed of the first few, with the inputs as they are now."""
        path = self._layers.head_path
        if path == EMBEDDING:
            return 0.0
        given, weight = self._given(adds_to_residual=False), next(self._blocks(path))
        began = time.perf_counter()
        importance = self._curvature(self._fit_source.rows, [weight])(weight)
        mx.eval(self._weighted(given, importance).rounded(weight, self._settings_of(path), self._dtype))
        blocks = -(-self._layers.config.vocab_size // weight.shape[0])
        return (time.perf_counter() - began) * blocks

    def _blocks(self, path: str) -> Iterator[mx.array]:
        rows = max(BLOCK_ROWS, -(-self._layers.config.vocab_size // HEAD_BLOCKS))
        for weight in self._layers.rows(path):
            yield from (weight[first : first + rows] for first in range(0, weight.shape[0], rows))

    def _curvature(self, inputs: mx.array, head: Iterable[mx.array]) -> Callable[[mx.array], mx.array]:
        """Return what gives, for rows of the head, how much their logits count at each token of the source's inputs."""
        total = LogSum(inputs.shape[0])
        for weight in head:
            total.add(inputs @ weight.T)
            mx.eval(total.peak, total.total)

        def curvature(weight: mx.array) -> mx.array:
            p = mx.exp(inputs @ weight.T - total.value)
            share = weight.shape[0] / self._layers.config.vocab_size
            return (p * (1 - p)).sum(axis=-1, keepdims=True) + EVERYWHERE * share

        return curvature

    def _given(self, *, adds_to_residual: bool) -> _Given:
        """Return what the next matrices are rounded for: the inputs to fit to, as they are now."""
        hessian = cross_moments(self._fit.inputs, self._fit.inputs)
        if self._rounding == "fitted":
            return _Given(mx.diag(hessian))
        factor = gptq.factored(hessian)
        differences = [x - y for x, y in zip(self._fit_source.inputs, self._fit.inputs, strict=True)]
        gain = factor.solve(cross_moments(differences, self._fit.inputs))
        offset = None
        if adds_to_residual:
            differences = [x - y for x, y in zip(self._fit_source.hidden, self._fit.hidden, strict=True)]
            offset = factor.solve(cross_moments(differences, self._fit.inputs))
        mx.eval(gain, [] if offset is None else offset)
        return _Given(mx.diag(hessian), factor, gain, offset)

    def _weighted(self, given: _Given, importance: mx.array) -> _Given:
        """Return the same with tokens that count as `importance` (tokens, 1) says; what is wanted stays."""
        hessian = cross_moments(_weighted(self._fit.inputs, importance), self._fit.inputs)
        factor = None if given.factor is None else gptq.factored(hessian)
        return replace(given, importance=mx.diag(hessian), factor=factor)

    def _better(
        self, path: str, parts: Parts, weight: mx.array, wanted: mx.array, importance: mx.array | None = None
    ) -> tuple[Parts, mx.array, mx.array]:
        """Return the parts whose outputs on held-out windows are nearer to `wanted`, `parts` or plain ones.

        Beside them the weight itself, and as plain rounding makes it. `importance` (tokens, 1) says how much each
        token counts.
        """
        settings, inputs = self._settings_of(path), self._candidate.rows
        plain_parts = self._plain(weight, settings)
        plain = self._read(plain_parts, settings)
        counts = mx.array(1.0) if importance is None else importance
        candidate_error, plain_error = (
            (counts * (inputs @ each.T - wanted).square()).sum() for each in (self._read(parts, settings), plain)
        )
        if (candidate_error <= plain_error).item():
            return parts, weight, plain
        if path not in self._outcome.kept_plain:
            self._outcome.kept_plain.append(path)
        return plain_parts, weight, plain

    def _plain(self, weight: mx.array, settings: QuantizationSettings) -> Parts:
        return quantized(weight, settings, self._dtype)

    def _fitted(self, weight: mx.array, settings: QuantizationSettings) -> Parts:
        return fitted(weight, settings, self._dtype)

    def _read(self, parts: Parts, settings: QuantizationSettings) -> mx.array:
        return dequantized(parts, settings)

    def _settings_of(self, path: str) -> QuantizationSettings:
        settings = self._module_settings(path)
        assert settings is not None, path
        return settings


def cross_moments(x: Sequence[mx.array], y: Sequence[mx.array]) -> mx.array:
    """Return the sum of x y^T over all tokens of windows (B, L, columns), float32 (columns of x, columns of y)."""
    total = mx.zeros((x[0].shape[-1], y[0].shape[-1]))
    for a, b in zip(x, y, strict=True):
        total = total + a.reshape(-1, a.shape[-1]).T @ b.reshape(-1, b.shape[-1])
        mx.eval(total)
    return total


def _weighted(inputs: Sequence[mx.array], importance: mx.array) -> list[mx.array]:
    """Return windows (B, L, columns), each token times its own importance (tokens, 1)."""
    ends = list(accumulate(x.shape[0] * x.shape[1] for x in inputs))
    each = mx.split(importance, ends[:-1])
    return [x * own.reshape(*x.shape[:2], 1) for x, own in zip(inputs, each, strict=True)]


def _named(path: str, first_row: int, parts: Parts) -> Iterator[tuple[str, int, mx.array]]:
    mx.eval(parts)
    yield from ((f"{path}.{suffix}", first_row, part) for suffix, part in parts.items())
