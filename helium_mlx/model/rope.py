"""Rotary position embeddings (RoPE) in both pairings and in every scaling that transformers has for this family.

Helium rotates interleaved pairs (2i, 2i + 1), Llama rotates half-split pairs (i, i + d/2). The two have the same
shapes, and the wrong one loads cleanly and is silently wrong, so `model_type` alone decides (see
`checkpoint/config.py`).

Frequencies follow `transformers.modeling_rope_utils`, evaluated in float64 and rounded once to float32. Two deviations:
yarn's and longrope's factor on cos and sin is applied to the attention scale instead (squared, since it multiplies
queries and keys), and `dynamic` derives its frequencies from the length of the call at hand, where transformers
remembers the longest call it has seen.
"""

import math
from collections.abc import Callable, Sequence
from typing import cast

import mlx.core as mx

from helium_mlx import backend
from helium_mlx.checkpoint.rope_parameters import Json, number_of

Rotation = Callable[[mx.array], mx.array]
"""Rotates queries or keys of shape (B, heads, L, head_dim) to their positions."""


class RotaryEmbedding:
    """Makes the rotation for the positions of one forward pass; all layers share it.

    `attention_factor` is what transformers multiplies cos and sin by; the caller squares it into the attention scale.
    """

    def __init__(self, parameters: Json, *, head_dim: int, max_position_embeddings: int, interleaved: bool) -> None:
        self.parameters = parameters
        self.rope_type = str(parameters["rope_type"])
        self.head_dim = head_dim
        self.max_position_embeddings = max_position_embeddings
        self.interleaved = interleaved
        self.attention_factor = self._attention_factor()
        self._wavelengths: dict[int, mx.array] = {}

    def at(self, offset: int, length: int, *, differentiable: bool = True) -> Rotation:
        """Rotate to positions offset, ..., offset + length - 1; without `differentiable` there may be no gradient."""
        wavelengths = self._wavelengths_for(offset + length)
        if backend.has_fused_kernels():
            return self._fused_rotation(offset, wavelengths)
        # Without a fused kernel, cos and sin once for all layers are cheaper than mx.fast.rope in each.
        positions = mx.arange(offset, offset + length, dtype=mx.float32)
        angles = positions[:, None] / wavelengths
        if self.interleaved and length == 1 and not differentiable:
            return self._complex_rotation(angles)
        return self._table_rotation(angles)

    def at_rows(self, offsets: Sequence[int], length: int) -> Rotation:
        """Rotate each row as `at` would with its own offset; one below 0 is padding, where any rotation does.

        There may be no gradient.
        """
        if len(set(offsets)) == 1:
            return self.at(offsets[0], length, differentiable=False)
        starts = mx.array(list(offsets), dtype=mx.int32)
        if len({self._frequency_key(offset + length) for offset in offsets}) > 1:
            rows = mx.stack([self._wavelengths_for(offset + length) for offset in offsets])
            return self._rows_rotation(starts, length, rows[:, None])
        wavelengths = self._wavelengths_for(offsets[0] + length)
        if backend.has_fused_kernels():
            return self._fused_rotation(starts, wavelengths)
        return self._rows_rotation(starts, length, wavelengths)

    def of_groups(self, position: int, turned: int) -> Rotation:
        """Rotate the first `turned` of (turned + 1, heads, 1, head_dim), groups of heads of one token, to `position`.

        The last group stays what it is: position 0 turns nothing. For fused kernels, which take a position for each.
        """
        positions = mx.array([position] * turned + [0], dtype=mx.int32)
        return self._fused_rotation(positions, self._wavelengths_for(position + 1))

    def at_array(self, offset: mx.array, length: int, end: mx.array) -> Rotation:
        """Rotate to positions offset, ..., offset + length - 1, where `offset`, int32 (1,), is known only at run time.

        `end`, int32 (1,), is the length that frequencies follow, as far as the type's do. At most
        `max_position_embeddings`: up to there `dynamic` is constant, and `longrope` has two sets of them.
        """
        wavelengths = self._wavelengths_for(0)
        if self.rope_type == "longrope":
            context = int(number_of(self.parameters, "original_max_position_embeddings"))
            wavelengths = mx.where(end > context, self._wavelengths_for(self.max_position_embeddings), wavelengths)
        if backend.has_fused_kernels():
            return self._fused_rotation(offset, wavelengths)
        angles = (offset + mx.arange(length)).astype(mx.float32)[:, None] / wavelengths
        if self.interleaved and length == 1:
            return self._complex_rotation(angles)
        return self._table_rotation(angles)

    def _fused_rotation(self, offset: int | mx.array, wavelengths: mx.array) -> Rotation:
        return lambda x: mx.fast.rope(
            x, self.head_dim, traditional=self.interleaved, base=None, scale=1.0, offset=offset, freqs=wavelengths
        )

    def _rows_rotation(self, starts: mx.array, length: int, wavelengths: mx.array) -> Rotation:
        positions = (starts[:, None] + mx.arange(length)).astype(mx.float32)
        return self._table_rotation((positions[..., None] / wavelengths)[:, None])

    def at_positions(self, position_ids: mx.array) -> Rotation:
        """Rotate to the given positions: `position_ids` has shape (B, L) or (1, L), any integers from 0 on."""
        angles = position_ids.astype(mx.float32)[:, None, :, None] / self._wavelengths_at(position_ids)
        return self._table_rotation(angles)

    def _table_rotation(self, angles: mx.array) -> Rotation:
        cos, sin = mx.cos(angles), mx.sin(angles)

        def rotate(x: mx.array) -> mx.array:
            c, s = cos.astype(x.dtype), sin.astype(x.dtype)
            if self.interleaved:
                x1, x2 = x[..., 0::2], x[..., 1::2]
                return mx.stack([x1 * c - x2 * s, x2 * c + x1 * s], axis=-1).reshape(x.shape)
            x1, x2 = mx.split(x, 2, axis=-1)
            return mx.concatenate([x1 * c - x2 * s, x2 * c + x1 * s], axis=-1)

        return rotate

    def _complex_rotation(self, angles: mx.array) -> Rotation:
        """A pair as a complex number, turned by a product: a fifth of the operations, for float32.

        For many tokens at once it is slower than the table on the CPU, and MLX has no gradient of a view.
        """
        turn = mx.stack([mx.cos(angles), mx.sin(angles)], axis=-1).view(mx.complex64)[..., 0]
        by_table = self._table_rotation(angles)

        def rotate(x: mx.array) -> mx.array:
            return (x.view(mx.complex64) * turn).view(mx.float32) if x.dtype == mx.float32 else by_table(x)

        return rotate

    def _wavelengths_for(self, length: int) -> mx.array:
        """Return 1 / inverse frequency per pair, shape (head_dim / 2,): the form that mx.fast.rope takes."""
        key = self._frequency_key(length)
        if key not in self._wavelengths:
            if self.rope_type == "dynamic":
                # It has a key a length: keep the last only.
                self._wavelengths = {}
            self._wavelengths[key] = mx.array(self._compute_wavelengths(key), dtype=mx.float32)
        return self._wavelengths[key]

    def _wavelengths_at(self, position_ids: mx.array) -> mx.array:
        """Return the wavelengths for a text that goes up to the largest of the positions."""
        # Only these two types look at the longest position, and only for them is the array read.
        if self.rope_type not in ("dynamic", "longrope"):
            return self._wavelengths_for(0)
        length = position_ids.max() + 1
        known = backend.value_of(length)
        if known is not None:
            return self._wavelengths_for(int(known))
        if self.rope_type == "longrope":
            context = int(number_of(self.parameters, "original_max_position_embeddings"))
            return mx.where(length > context, self._wavelengths_for(context + 1), self._wavelengths_for(context))
        plain, factor, dim = self._wavelengths_for(0), number_of(self.parameters, "factor"), self.head_dim
        lengths = mx.maximum(length, self.max_position_embeddings).astype(mx.float32) / self.max_position_embeddings
        exponents = mx.arange(dim // 2) * (2 / max(dim - 2, 1))
        return plain * (factor * lengths - (factor - 1)) ** exponents

    def _frequency_key(self, length: int) -> int:
        if self.rope_type == "dynamic":
            return max(length, self.max_position_embeddings)
        if self.rope_type == "longrope":
            return int(length > number_of(self.parameters, "original_max_position_embeddings"))
        return 0

    def _compute_wavelengths(self, key: int) -> list[float]:
        theta, factor = number_of(self.parameters, "rope_theta"), number_of(self.parameters, "factor", 1.0)
        dim = self.head_dim
        if self.rope_type == "dynamic":
            stretch = factor * key / self.max_position_embeddings - (factor - 1)
            theta *= stretch ** (dim / (dim - 2)) if dim > 2 else 1.0
        plain = [theta ** (2 * i / dim) for i in range(dim // 2)]
        if self.rope_type == "linear":
            return [factor * wavelength for wavelength in plain]
        if self.rope_type == "longrope":
            factors = cast(list[float], self.parameters["long_factor" if key else "short_factor"])
            return [f * wavelength for f, wavelength in zip(factors, plain, strict=True)]
        if self.rope_type == "llama3":
            return [self._llama3_wavelength(wavelength, factor) for wavelength in plain]
        if self.rope_type == "yarn":
            return self._yarn_wavelengths(plain, theta, factor)
        return plain

    def _llama3_wavelength(self, wavelength: float, factor: float) -> float:
        """Llama 3.1: stretch slow pairs by `factor`, keep fast ones, blend between the two frequencies."""
        context = number_of(self.parameters, "original_max_position_embeddings")
        low, high = number_of(self.parameters, "low_freq_factor"), number_of(self.parameters, "high_freq_factor")
        turns = context / (2 * math.pi * wavelength)
        if turns > high:
            return wavelength
        if turns < low:
            return wavelength * factor
        smooth = (turns - low) / (high - low)
        return wavelength / ((1 - smooth) / factor + smooth)

    def _yarn_wavelengths(self, plain: list[float], theta: float, factor: float) -> list[float]:
        """YaRN (arXiv:2309.00071): stretch pairs that turn less than beta_slow times, keep those over beta_fast."""
        dim, context = self.head_dim, number_of(self.parameters, "original_max_position_embeddings")

        def pair_of(turns: float) -> float:
            return dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(theta))

        low = pair_of(number_of(self.parameters, "beta_fast", 32))
        high = pair_of(number_of(self.parameters, "beta_slow", 1))
        if self.parameters.get("truncate", True):
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        width = high - low or 0.001
        ramps = [min(max((i - low) / width, 0.0), 1.0) for i in range(dim // 2)]
        return [w / (ramp / factor + 1 - ramp) for w, ramp in zip(plain, ramps, strict=True)]

    def _attention_factor(self) -> float:
        if self.rope_type not in ("yarn", "longrope"):
            return 1.0
        if self.parameters.get("attention_factor") is not None:
            return number_of(self.parameters, "attention_factor")
        context = number_of(self.parameters, "original_max_position_embeddings")
        factor = number_of(self.parameters, "factor", self.max_position_embeddings / context)
        if self.rope_type == "longrope":
            return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(context))
        mscale, mscale_all_dim = number_of(self.parameters, "mscale"), number_of(self.parameters, "mscale_all_dim")
        if mscale and mscale_all_dim:
            return _yarn_mscale(factor, mscale) / _yarn_mscale(factor, mscale_all_dim)
        return _yarn_mscale(factor, 1.0)


def _yarn_mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
