"""Rows of a matrix in MLX's 8- and 4-bit floating-point formats, unpacked by looking codes up.

`mx.dequantize` does the same, but on the CPU it goes by an operation (from 8-bit floats) that function files cannot
hold. Formats: E4M3 and E8M0 are the OCP's 8-bit floats and exponents, E2M1 its 4-bit floats (OCP MX, version 1.0);
mxfp8 is E4M3 under E8M0 scales, nvfp4 E2M1 under E4M3 scales. Every product has few enough bits for bfloat16.
"""

import mlx.core as mx

# The magnitudes of E2M1; a fourth bit is the sign.
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


class FloatCodes:
    """Unpacks rows of the modes mxfp8 and nvfp4 into `dtype`."""

    MODES = ("mxfp8", "nvfp4")

    def __init__(self, mode: str, group_size: int, dtype: mx.Dtype) -> None:
        self._bits = 8 if mode == "mxfp8" else 4
        self._group_size = group_size
        self._dtype = dtype
        octets = mx.arange(256).astype(mx.uint8)
        e4m3 = mx.from_fp8(octets, dtype=mx.float32)
        # 255 stands for no number, and no scale is that.
        powers = mx.power(mx.array(2.0), mx.minimum(mx.arange(256), 254) - 127)
        self._codes = e4m3 if mode == "mxfp8" else mx.array([*_E2M1, *(-value for value in _E2M1)])
        self._scales = powers if mode == "mxfp8" else e4m3
        mx.eval(self._codes, self._scales)

    def unpack(self, weight: mx.array, scales: mx.array) -> mx.array:
        """Return rows of packed codes (..., columns * bits / 32) and their scales as (..., columns)."""
        codes = weight.view(mx.uint8)
        if self._bits == 4:
            # The lower half of an octet comes first.
            codes = mx.stack([codes & 15, codes >> 4], axis=-1).reshape(*weight.shape[:-1], -1)
        values = self._codes[codes].reshape(*scales.shape, self._group_size)
        return (values * self._scales[scales][..., None]).reshape(codes.shape).astype(self._dtype)
