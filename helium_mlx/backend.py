"""What differs between MLX's backends, in one place. Everything else in the package is the same on all of them.

The device is always MLX's default one. Choices made here for the CPU: no `mx.compile` (its CPU path calls a C++
compiler at run time), RoPE tables shared by all layers, float32 beside quantized weights, float32 matrices stored by
their columns, and two streams to convert on.
"""

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import mlx.core as mx

T = TypeVar("T", bound=Callable[..., mx.array])
_streams = threading.local()

# Rows of a matrix that `for_products` takes at a time.
_STRIP = 64


def is_cpu() -> bool:
    """Return whether MLX computes on the CPU by default."""
    return mx.default_device().type == mx.DeviceType.cpu


def name() -> str:
    """Return what MLX computes on by default: "cpu", "metal" or "cuda"."""
    if is_cpu():
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


def dtype_name(dtype: mx.Dtype) -> str:
    """Return what a dtype is called, such as "float32", in files as in `mlx.core`."""
    return str(dtype).removeprefix("mlx.core.")


def has_fused_kernels() -> bool:
    """Return whether `mx.fast` runs as one kernel an operation (Metal, CUDA) rather than as a chain of primitives."""
    return not is_cpu()


def fuse(function: T) -> T:
    """Return `function`, which is element-wise, as one kernel of a GPU: compiled, but on the CPU as it is.

    `function` takes arrays alone; a number that changes from call to call comes as one.
    """
    compiled = mx.compile(function, shapeless=True)

    def call(*arrays: mx.array) -> mx.array:
        return function(*arrays) if is_cpu() else compiled(*arrays)

    return cast(T, call)


def compiled(function: Callable[..., Sequence[mx.array]]) -> Callable[..., Sequence[mx.array]]:
    """Return `function`, which is one graph, with chains of element-wise operations as one kernel each on a GPU.

    On the CPU as it is.
    """
    return function if is_cpu() else mx.compile(function)


def value_of(scalar: mx.array) -> bool | int | float | None:
    """Return the value of an array without dimensions; None where it is not known, as within `mx.compile`.

    `scalar` has to be computed from what may be traced: MLX tells of a traced array only by refusing to compute on it.
    """
    try:
        return cast("bool | int | float", scalar.item())
    except ValueError as error:
        if "function transformations" not in str(error):
            raise
        return None


def compute_dtype(checkpoint_dtype: mx.Dtype, *, quantized: bool) -> mx.Dtype:
    """Return the dtype to compute in when the user names none: the checkpoint's, but float32 for 4 bits on the CPU.

    MLX's CPU matrix-vector product with 4-bit weights takes 14 ms in float32, 122 ms in bfloat16 and 625 ms in
    float16 (7040 x 2560, measured on two x86 cores).
    """
    return mx.float32 if quantized and is_cpu() else checkpoint_dtype


def for_products(matrix: mx.array) -> mx.array:
    """Return (..., rows, columns) as it is, or, in float32 on the CPU, with the same values stored by columns.

    `x @ matrix.T` is then a product of two matrices stored by rows, which the BLAS of MLX's Linux wheel does up to
    twice as fast: it adds up whole rows, and not one number at a time. The sums are the same to the last bit.
    """
    if not is_by_columns(matrix):
        return matrix
    # In strips: a large matrix read down its columns misses the cache at every number.
    starts = range(0, matrix.shape[-2], _STRIP)
    strips = [matrix[..., row : row + _STRIP, :].swapaxes(-1, -2) for row in starts]
    return mx.concatenate(strips, axis=-1).swapaxes(-1, -2)


def is_by_columns(matrix: mx.array) -> bool:
    """Return whether `for_products` stores a matrix by columns."""
    return is_cpu() and matrix.dtype == mx.float32


def wireable_bytes() -> int | None:
    """Return how much memory may be kept resident for the GPU; None where MLX wires none: anywhere but on Metal."""
    if is_cpu() or not mx.metal.is_available():
        return None
    recommended = mx.device_info().get("max_recommended_working_set_size")
    return recommended if isinstance(recommended, int) else None


def cholesky(x: mx.array) -> mx.array:
    """Return the lower Cholesky factor of (N, N), on the CPU: Metal has no decompositions."""
    return mx.linalg.cholesky(x, stream=mx.cpu)


def solve_triangular(factor: mx.array, x: mx.array, *, upper: bool) -> mx.array:
    """Return what a triangular (N, N) times it makes (N, K), on the CPU: Metal has no solvers."""
    return mx.linalg.solve_triangular(factor, x, upper=upper, stream=mx.cpu)


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
