"""How many kernels a program would launch on a GPU for each token, counted on any machine.

The program's own loop decodes a small model with as many layers, in its own form for a GPU, and the graph of a step is
looked at (`graph_size.py`). What MLX has as one kernel on Metal and CUDA, and on the CPU as a chain of operations, is
replaced by one operation that reads the same arrays and computes nothing, so that the tokens are arbitrary. So is the
unpacking of quantized rows. Views count nothing; what MLX may have to copy before a view or a product is not known
before it runs, and not counted.

A kernel's launch does not depend on sizes: so the model is small, and the figures are those of any model with the same
layers, family and kind of heads.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from helium_mlx import backend
from helium_mlx.checkpoint.config import HeliumConfig
from helium_mlx.diagnostics.graph_size import Operations
from helium_mlx.files.hub import DEMO_DIRECTORY
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

PRECISIONS: dict[str, int | None] = {"bfloat16": None, "4 bits": 4}
"""The small models: the name of each, and the bits that its matrices have."""

_VIEWS = {
    "AsStrided", "Broadcast", "ExpandDims", "Flatten", "Reshape", "Slice", "Split", "Squeeze", "StopGradient",
    "Transpose", "Unflatten", "View",
}  # fmt: skip
_HEAD_DIM = 64
_CONTEXT = 1024


def kernels(operations: Operations) -> int:
    """Return how many of the operations are kernels: all but views."""
    return sum(count for name, count in operations.items() if name not in _VIEWS)


@contextmanager
def as_on_gpu() -> Iterator[None]:
    """Have programs that load a model in this context build what they would hand to a GPU.

    It holds for the whole process, and what they compute is noise.
    """
    stand_ins = {
        (mx.fast, "rms_norm"): lambda x, weight, eps, **_: _reading(_noise(x.shape, x.dtype), x, weight),
        (mx.fast, "rope"): lambda x, dims, *, offset, freqs=None, **_: _reading(x, offset, freqs),
        (mx.fast, "scaled_dot_product_attention"): lambda q, k, v, *, mask=None, **_: _reading(q, k, v, mask),
        (mx, "dequantize"): _dequantize,
        (backend, "is_cpu"): lambda: False,
    }
    kept = {place: getattr(*place) for place in stand_ins}
    for place, stand_in in stand_ins.items():
        setattr(*place, stand_in)
    try:
        yield
    finally:
        for place, original in kept.items():
            setattr(*place, original)


def _reading(x: mx.array, *others: object) -> mx.array:
    """Return `x` after one operation that reads all the arrays."""
    return mx.depends([x], [other for other in others if isinstance(other, mx.array)])[0]


def _dequantize(
    w: mx.array, scales: mx.array, biases: mx.array | None = None, group_size: int = 64, bits: int = 4, **_: object
) -> mx.array:
    return _reading(_noise((*w.shape[:-1], w.shape[-1] * 32 // bits), scales.dtype), w, scales, biases)


@cache
def _noise(shape: Sequence[int], dtype: mx.Dtype) -> mx.array:
    # Every row is the same, so that what is drafted comes true.
    row = mx.random.normal(shape[-1:], key=mx.random.key(0)).astype(dtype)
    noise = mx.contiguous(mx.broadcast_to(row, shape))
    mx.eval(noise)
    return noise


def write_small_model(directory: Path, config: HeliumConfig, bits: int | None) -> None:
    """Write a checkpoint whose graph is that of `config`, with `bits` a weight, or in bfloat16; any program opens it.

    Family, layers, activation, biases, tied heads and whether key-value heads are shared stay; the rest is small.
    """
    tokenizer = HeliumTokenizer.from_pretrained(DEMO_DIRECTORY)
    small = replace(
        config,
        vocab_size=tokenizer.vocab_size,
        hidden_size=2 * _HEAD_DIM,
        intermediate_size=2 * _HEAD_DIM,
        num_attention_heads=2,
        num_key_value_heads=1 if config.num_key_value_heads < config.num_attention_heads else 2,
        head_dim=_HEAD_DIM,
        max_position_embeddings=_CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        initializer_range=0.1,
        quantization=None,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    model = HeliumForCausalLM(small)
    model.set_dtype(mx.bfloat16)
    if bits is not None:
        nn.quantize(model, group_size=_HEAD_DIM, bits=bits)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
