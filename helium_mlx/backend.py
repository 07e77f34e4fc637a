"""What differs between MLX's backends, in one place. Everything else in the package is the same on all of them.

The device is always MLX's default one. Choices made here for the CPU: no `mx.compile` (its CPU path calls a C++
compiler at run time), RoPE tables shared by all layers, and float32 beside quantized weights.
"""

from collections.abc import Callable
from typing import TypeVar, cast

import mlx.core as mx

T = TypeVar("T", bound=Callable[..., mx.array])


def is_cpu() -> bool:
    """Return whether MLX computes on the CPU by default."""
    return mx.default_device().type == mx.DeviceType.cpu


def has_fused_kernels() -> bool:
    """Return whether `mx.fast` runs as one kernel an operation (Metal, CUDA) rather than as a chain of primitives."""
    return not is_cpu()


def fuse(function: T) -> T:
    """Return `function` compiled where that helps; for element-wise functions that are called in every layer."""
    return function if is_cpu() else cast(T, mx.compile(function, shapeless=True))


def compute_dtype(checkpoint_dtype: mx.Dtype, *, quantized: bool) -> mx.Dtype:
    """Return the dtype to compute in when the user names none: the checkpoint's, but float32 for 4 bits on the CPU.

    MLX's CPU matrix-vector product with 4-bit weights takes 14 ms in float32, 122 ms in bfloat16 and 625 ms in
    float16 (7040 x 2560, measured on two x86 cores).
    """
    return mx.float32 if quantized and is_cpu() else checkpoint_dtype
