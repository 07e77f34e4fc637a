"""Rounding into MLX's affine format with a smaller error than `mx.quantize`'s, which goes by a group's extremes alone.

A group of weights w is stored as codes c, a scale s and a bias b, and read as s * c + b. Here s and b are fitted: the
codes nearest to the weights and the line through them that errs least take turns, from several starts between which
the group's extremes are cut off more and more. What counts is the squared error, weighted by column if that is asked
for. Scales and biases are rounded to the dtype that they are stored in before codes are chosen, so that codes make up
for that rounding, which at 6 bits and more is what costs most.

`mx.quantize`'s own scale and bias are among the candidates, so no group errs more than it would there.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import mlx.core as mx

from helium_mlx.checkpoint.quantization_settings import QuantizationSettings

Rounding = Literal["nearest", "fitted", "gptq"]
"""How weights become codes: as `mx.quantize` does it, as this file does it, or as `gptq.py` does."""


ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)

# How much of a group's range is cut off at either end, where the search starts, and how often codes and line take
# turns from there. Few bits have the most to gain from cutting.
STARTS = {
    2: (0.0, 0.06, 0.12, 0.18, 0.24),
    3: (0.0, 0.05, 0.1, 0.15),
    4: (0.0, 0.03, 0.06, 0.1),
    5: (0.0, 0.03),
    6: (0.0, 0.02),
    8: (0.0,),
}
TURNS = {2: 4, 3: 3, 4: 2, 5: 2, 6: 1, 8: 1}


@dataclass(frozen=True)
class AffineParameters:
    """Scale and bias of each group, float32 (..., groups, 1), with values that the dtype on disk holds."""

    scales: mx.array
    biases: mx.array

    def codes(self, values: mx.array, bits: int) -> mx.array:
        """Return the codes nearest to values (..., groups, group_size), float32."""
        scales = mx.where(self.scales == 0, 1, self.scales)
        return mx.clip(mx.round((values - self.biases) / scales), 0, 2**bits - 1)

    def values(self, codes: mx.array) -> mx.array:
        """Return what codes are read as."""
        return codes * self.scales + self.biases


def fitted(
    weight: mx.array, settings: QuantizationSettings, dtype: mx.Dtype, *, importance: mx.array | None = None
) -> dict[str, mx.array]:
    """Return weight, scales and biases as they are stored, for a float32 weight (rows, columns); nothing is evaluated.

    `importance` (columns,), not negative, weighs the squared errors; `dtype` is that of scales and biases.
    """
    groups = weight.reshape(weight.shape[0], -1, settings.group_size)
    affine = fit_affine(groups, settings, dtype, importance=_by_group(importance, settings))
    return packed(affine.codes(groups, settings.bits), affine, settings, dtype)


def fit_affine(
    groups: mx.array, settings: QuantizationSettings, dtype: mx.Dtype, *, importance: mx.array | None = None
) -> AffineParameters:
    """Return the scale and bias found for each of groups (rows, groups, group_size), float32.

    `importance` is a positive factor of each value's squared error, of a shape that broadcasts; None is all the same.
    """
    importance = mx.ones((1, 1, 1)) if importance is None else importance
    importance = mx.broadcast_to(importance, (importance.shape[0], importance.shape[1], settings.group_size))
    best = plain_affine(groups, settings, dtype)
    error = _error(groups, best, importance, settings.bits)
    for affine in _candidates(groups, importance, settings, dtype):
        other = _error(groups, affine, importance, settings.bits)
        # False where a candidate is not finite.
        better = other < error
        best = AffineParameters(
            mx.where(better, affine.scales, best.scales), mx.where(better, affine.biases, best.biases)
        )
        error = mx.where(better, other, error)
    return best


def plain_affine(groups: mx.array, settings: QuantizationSettings, dtype: mx.Dtype) -> AffineParameters:
    """Return the scales and biases that `mx.quantize` gives, rounded to `dtype`."""
    rows, n_groups, size = groups.shape
    _, scales, biases = mx.quantize(groups.reshape(rows, n_groups * size), settings.group_size, settings.bits)
    return AffineParameters(stored(scales[..., None], dtype), stored(biases[..., None], dtype))


def packed(
    codes: mx.array, affine: AffineParameters, settings: QuantizationSettings, dtype: mx.Dtype
) -> dict[str, mx.array]:
    """Return the parts as they are stored, of codes (rows, groups, group_size) and their affine."""
    return {
        "weight": pack_codes(codes.reshape(codes.shape[0], -1), settings.bits),
        "scales": affine.scales.squeeze(-1).astype(dtype),
        "biases": affine.biases.squeeze(-1).astype(dtype),
    }


def pack_codes(codes: mx.array, bits: int) -> mx.array:
    """Return codes (rows, columns) as MLX packs them, uint32 (rows, columns * bits / 32): one stream, lowest bit first.

    Its documentation of `mx.quantize` shows that for widths that divide 32; of 3, 5 and 6 bits, codes cross from one
    word into the next.
    """
    rows, columns = codes.shape
    digits = (codes.astype(mx.uint8)[..., None] >> mx.arange(bits, dtype=mx.uint8)) & 1
    words = digits.reshape(rows, columns * bits // 32, 32).astype(mx.uint32)
    return (words << mx.arange(32, dtype=mx.uint32)).sum(axis=-1)


def _candidates(
    groups: mx.array, importance: mx.array, settings: QuantizationSettings, dtype: mx.Dtype
) -> Iterator[AffineParameters]:
    low, high = groups.min(axis=-1, keepdims=True), groups.max(axis=-1, keepdims=True)
    steps = 2**settings.bits - 1
    for cut in STARTS[settings.bits]:
        start = low + cut * (high - low)
        affine = AffineParameters(stored((1 - 2 * cut) * (high - low) / steps, dtype), stored(start, dtype))
        yield affine
        for _ in range(TURNS[settings.bits]):
            affine = _least_squares(affine.codes(groups, settings.bits), groups, importance, dtype)
            yield affine


def _least_squares(codes: mx.array, groups: mx.array, importance: mx.array, dtype: mx.Dtype) -> AffineParameters:
    """Return the line that errs least for given codes, by weighted least squares."""
    total = importance.sum(axis=-1, keepdims=True)
    mean_code = (importance * codes).sum(axis=-1, keepdims=True) / total
    mean_value = (importance * groups).sum(axis=-1, keepdims=True) / total
    away = codes - mean_code
    spread = (importance * away * away).sum(axis=-1, keepdims=True)
    slope = (importance * away * groups).sum(axis=-1, keepdims=True) / mx.where(spread == 0, 1, spread)
    scales = stored(slope, dtype)
    # The bias that suits the rounded scale.
    return AffineParameters(scales, stored(mean_value - scales * mean_code, dtype))


def _error(groups: mx.array, affine: AffineParameters, importance: mx.array, bits: int) -> mx.array:
    difference = affine.values(affine.codes(groups, bits)) - groups
    return (importance * difference * difference).sum(axis=-1, keepdims=True)


def stored(values: mx.array, dtype: mx.Dtype) -> mx.array:
    """Return values, float32, as `dtype` holds them."""
    return values.astype(dtype).astype(mx.float32)


def _by_group(importance: mx.array | None, settings: QuantizationSettings) -> mx.array | None:
    if importance is None:
        return None
    # A column that no input uses still has to be rounded somehow: a trace of weight keeps its group well-posed.
    floor = 1e-6 * importance.max() + 1e-30
    return mx.maximum(importance, floor).reshape(1, -1, settings.group_size)
