"""Rounds a causal LM's matrices to what they are given in use: layer by layer, once through, streamed.

Sequential: what a matrix is given comes from the layers before it as they were rounded already, so that each makes up
for the others as far as it can. Every matrix is rounded plainly, too, and the calibrated rounding is kept where it errs
less on windows that nothing was fitted to. The same windows say, at the end, how far either model is from its source.

The embedding is fitted without weights: its rows are used one by one, so there are no inputs to weigh them by.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast, get_args

import mlx.core as mx

from helium_mlx import gptq
from helium_mlx.calibration import Windows
from helium_mlx.layer_walk import EMBEDDING, LayerWalk, Stage, Stream, walk
from helium_mlx.checkpoint import Checkpoint
from helium_mlx.quantization import ModuleSettings, QuantizationSettings
from helium_mlx.rounding import fitted
from helium_mlx.running_divergence import RunningDivergence
from helium_mlx.slabs import dequantized
from helium_mlx.weight_conversion import quantized

Rounding = Literal["nearest", "fitted", "gptq"]
ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)

Parts = dict[str, mx.array]


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
    settings: ModuleSettings,
    dtype: mx.Dtype,
    *,
    rounding: Rounding,
    windows: Windows,
    outcome: RoundingOutcome,
) -> Iterator[tuple[str, int, mx.array]]:
    """Yield the quantized matrices of the result as (name, first row, rows), as `converted_rows` does.

    `outcome` is filled in as the rows are taken.
    """
    with walk(checkpoint) as layers:
        yield from _Rounder(layers, settings, dtype, rounding, outcome, windows).rows()


RoundBlock = Callable[[mx.array, QuantizationSettings], Parts]
"""Rounds some rows of a matrix, float32 (rows, columns), to what is stored."""


class _Rounder:
    """Takes four streams through the model: the source, plain rounding and ours on held-out windows; ours on the rest.

    `fit` are the windows to fit to.
    """

    def __init__(
        self,
        layers: LayerWalk,
        settings: ModuleSettings,
        dtype: mx.Dtype,
        rounding: Rounding,
        outcome: RoundingOutcome,
        windows: Windows,
    ) -> None:
        self._layers, self._settings, self._dtype = layers, settings, dtype
        self._rounding, self._outcome = rounding, outcome
        ids = sorted({token for window in (*windows.fitted, *windows.held_out) for token in _ids(window)})
        place = {token: row for row, token in enumerate(ids)}
        table, packing = layers.embeddings(ids), self._packing(EMBEDDING)
        plain, ours = (self._read(parts(table, packing), packing) for parts in (self._plain, self._fitted))

        def stream(embeddings: mx.array, some: Sequence[mx.array]) -> Stream:
            return Stream([embeddings[mx.array([[place[token] for token in _ids(window)]])] for window in some])

        self._source, self._nearest = stream(table, windows.held_out), stream(plain, windows.held_out)
        self._ours, self._fit = stream(ours, windows.held_out), stream(ours, windows.fitted)

    def rows(self) -> Iterator[tuple[str, int, mx.array]]:
        """Yield (name, first row, rows) of every matrix, in the order of the forward pass."""
        yield from self._embedding_rows()
        for stream in (self._source, self._nearest, self._ours, self._fit):
            self._layers.begin(stream)
        for stage in self._layers.stages():
            yield from self._stage_rows(stage)
        yield from self._head_rows()

    def _embedding_rows(self) -> Iterator[tuple[str, int, mx.array]]:
        packing, first_row = self._packing(EMBEDDING), 0
        for weight in self._layers.rows(EMBEDDING):
            yield from _named(EMBEDDING, first_row, self._fitted(weight, packing))
            first_row += weight.shape[0]

    def _stage_rows(self, stage: Stage) -> Iterator[tuple[str, int, mx.array]]:
        round_block, rows = self._block_rounding(), self._ours.rows
        source, plain, ours = {}, {}, {}
        for path in stage.paths:
            packing = self._packing(path)
            source[path] = self._layers.weight(path)
            plain_parts = self._plain(source[path], packing)
            plain[path] = self._read(plain_parts, packing)
            parts, ours[path] = self._better(path, source[path], round_block(source[path], packing), plain_parts, rows)
            yield from _named(path, 0, parts)
        for stream, weights in ((self._source, source), (self._nearest, plain), (self._ours, ours), (self._fit, ours)):
            self._layers.advance(stream, stage, weights)

    def _head_rows(self) -> Iterator[tuple[str, int, mx.array]]:
        path = self._layers.head_path
        packing, first_row = self._packing(path), 0
        round_block = self._fitted if path == EMBEDDING else self._block_rounding()
        source, nearest, rows = self._source.rows, self._nearest.rows, self._ours.rows
        plain_kl, kl = RunningDivergence(rows.shape[0]), RunningDivergence(rows.shape[0])
        for weight in self._layers.rows(path):
            plain_parts = self._plain(weight, packing)
            if path == EMBEDDING:
                parts = round_block(weight, packing)
                ours = self._read(parts, packing)
            else:
                parts, ours = self._better(path, weight, round_block(weight, packing), plain_parts, rows)
                yield from _named(path, first_row, parts)
            logits = source @ weight.T
            plain_kl.add(logits, nearest @ self._read(plain_parts, packing).T)
            kl.add(logits, rows @ ours.T)
            first_row += weight.shape[0]
        self._outcome.plain_kl, self._outcome.kl = plain_kl.mean, kl.mean

    def _block_rounding(self) -> RoundBlock:
        """Return the rounding of matrices that are given the inputs to fit to, as they are now."""
        hessian = second_moments(self._fit.inputs)
        if self._rounding == "gptq":
            feedback = gptq.feedback_of(hessian)
            return lambda weight, packing: gptq.rounded(weight, feedback, packing, self._dtype)
        importance = mx.diag(hessian)
        return lambda weight, packing: fitted(weight, packing, self._dtype, importance=importance)

    def _better(
        self, path: str, weight: mx.array, parts: Parts, plain_parts: Parts, inputs: mx.array
    ) -> tuple[Parts, mx.array]:
        """Return the one of two roundings whose outputs err less, given `inputs` (tokens, columns), and its values."""
        packing = self._packing(path)
        ours, plain = self._read(parts, packing), self._read(plain_parts, packing)
        if _output_error(ours - weight, inputs) <= _output_error(plain - weight, inputs):
            return parts, ours
        if path not in self._outcome.kept_plain:
            self._outcome.kept_plain.append(path)
        return plain_parts, plain

    def _plain(self, weight: mx.array, packing: QuantizationSettings) -> Parts:
        return quantized(weight, packing, self._dtype)

    def _fitted(self, weight: mx.array, packing: QuantizationSettings) -> Parts:
        return fitted(weight, packing, self._dtype)

    def _read(self, parts: Parts, packing: QuantizationSettings) -> mx.array:
        return dequantized(parts, packing)

    def _packing(self, path: str) -> QuantizationSettings:
        packing = self._settings(path)
        assert packing is not None, path
        return packing


def second_moments(inputs: Sequence[mx.array]) -> mx.array:
    """Return the sum of x x^T over windows (B, L, columns), float32 (columns, columns)."""
    total = mx.zeros((inputs[0].shape[-1],) * 2)
    for x in inputs:
        rows = x.reshape(-1, x.shape[-1])
        total = total + rows.T @ rows
        mx.eval(total)
    return total


def _output_error(difference: mx.array, inputs: mx.array) -> float:
    return cast(float, (inputs @ difference.T).square().sum().item())


def _named(path: str, first_row: int, parts: Parts) -> Iterator[tuple[str, int, mx.array]]:
    mx.eval(parts)
    yield from ((f"{path}.{suffix}", first_row, part) for suffix, part in parts.items())


def _ids(window: mx.array) -> list[int]:
    return cast("list[int]", window[0].tolist())
