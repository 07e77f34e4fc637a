"""What differs between MLX's backends, in one place. Everything else in the package is the same on all of them.

The device is always MLX's default one. Choices made here for the CPU: no `mx.compile` (its CPU path calls a C++
compiler at run time), RoPE tables shared by all layers, float32 beside quantized weights, and two streams to convert
on.
"""

import threading
from collections.abc import Callable
from typing import TypeVar, cast

import mlx.core as mx

T = TypeVar("T", bound=Callable[..., mx.array])

_streams = threading.local()


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


def wireable_bytes() -> int | None:
    """Return how much memory may be kept resident for the GPU; None where MLX wires none: anywhere but on Metal."""
    if is_cpu() or not mx.metal.is_available():
        return None
    recommended = mx.device_info().get("max_recommended_working_set_size")
    return recommended if isinstance(recommended, int) else None


def conversion_streams() -> list[mx.Stream]:
    """Return the streams to deal independent work out to: one on a GPU, two on the CPU, where each uses one core.

    Streams belong to the thread that made them, and live as long as the process: each thread gets its own, once.
    """
    device = mx.default_device()
    if not is_cpu():
        return [mx.default_stream(device)]
    if not hasattr(_streams, "cpu"):
        _streams.cpu = [mx.new_stream(device) for _ in range(2)]
    return _streams.cpu
