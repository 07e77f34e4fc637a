"""Prints what a run takes in memory for the published shapes, as Markdown: `python examples/memory_table.py`.

Weights at 4, 6 and 8 bits, the key-value cache of 1k, 2k and 4k tokens, and the working set: what a step of the prompt
needs in passing. All are computed, as on a Mac: scales, cache and activations in bfloat16, attention as one kernel. The
working set is then the largest sum of arrays alive at once in a layer; a GPU that runs ahead holds those of a few
layers. The program itself comes on top, and what MLX keeps for reuse, which `mx.set_cache_limit` bounds.

`--measure` checks the computation where it can be checked: it runs one step of the prompt after a full cache, in a
model of the published widths with random weights and few layers (the working set does not follow the layers), on the
backend at hand, and prints the peak of MLX's memory beside the figure computed for that backend. On a CPU that is
float32, and attention is not one kernel, so that all scores are there at once.
"""

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
from write_random_checkpoint import SHAPES, write_random_checkpoint

from helium_mlx import HeliumConfig, backend, convert, make_cache
from helium_mlx.checkpoint import layout
from helium_mlx.checkpoint.quantization_settings import QuantizationSettings
from helium_mlx.kv_cache.memory import cache_bytes
from helium_mlx.model.loading import load_model
from helium_mlx.quantization.recipes import bytes_on_disk
from helium_mlx.terminal import run_command

# what the table calls a model -> its key in SHAPES
MODELS = {"helium-1-preview-2b": "preview", "helium-1-2b": "1-2b"}
BITS = (4, 6, 8)
CONTEXTS = (1024, 2048, 4096)
GROUP_SIZE = 64
STEP = 512


@dataclass(frozen=True)
class Memory:
    """Bytes of weights, of a full cache, and of what one step needs beside them."""

    weights: int
    cache: int
    working_set: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.cache + self.working_set


def memory(config: HeliumConfig, bits: int, tokens: int) -> Memory:
    """Return what a model of this config takes with `bits` bits a weight and `tokens` tokens in the cache."""
    paths = [path for path, _ in layout.weight_shapes(config)]
    settings = dict.fromkeys(paths, QuantizationSettings(GROUP_SIZE, bits)).get
    return Memory(
        weights=bytes_on_disk(config, settings),
        cache=cache_bytes(config, tokens),
        working_set=working_set(config, tokens, size=2, is_fused=True),
    )


def working_set(config: HeliumConfig, tokens: int, *, size: int, is_fused: bool) -> int:
    """Return the bytes alive at once in a layer while `STEP` tokens run, the last of `tokens`; values have `size`.

    Where attention is not one kernel, scores and their softmax are arrays, in float32.
    """
    hidden, queries = config.hidden_size, config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    # The residual stream; q, k and v; q and k once more, rotated; the output.
    attention = STEP * size * (hidden + (queries + 2 * keys) + (queries + keys) + queries)
    if not is_fused:
        attention += 2 * 4 * config.num_attention_heads * STEP * tokens
    # The residual stream, that normed; gate and up in one; the activation and the product.
    mlp = STEP * size * (2 * hidden + 4 * config.intermediate_size)
    return max(attention, mlp)


def table() -> str:
    """Return the computed table."""
    configs = {model: HeliumConfig.from_dict(SHAPES[shape]) for model, shape in MODELS.items()}
    header = [f"{model}: {what}" for model in configs for what in ("weights", "cache", "working set", "total")]
    lines = [["context", "bits", *header], ["--"] * (2 + len(header))]
    for tokens in CONTEXTS:
        for bits in BITS:
            found = [memory(config, bits, tokens) for config in configs.values()]
            figures = [figure for m in found for figure in (m.weights, m.cache, m.working_set, m.total)]
            lines.append([f"{tokens:,}", str(bits), *(f"{figure / 1e9:.2f}" for figure in figures)])
    counted = f"GB of 10^9 bytes, computed for Metal; the working set is that of a step of {STEP} tokens."
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", counted])


def measured_table(layers: int) -> str:
    """Return the table of measured and computed working sets, in MB, on the backend at hand."""
    lines = [["context", *(f"{model}: {what}" for model in MODELS for what in ("measured", "computed"))]]
    lines.append(["--"] * len(lines[0]))
    columns = [measured(shape, {"num_hidden_layers": layers}) for shape in MODELS.values()]
    for index, tokens in enumerate(CONTEXTS):
        figures = [figure for column in columns for figure in column[index]]
        lines.append([f"{tokens:,}", *(f"{figure / 1e6:.0f}" for figure in figures)])
    counted = f"MB of 10^6 bytes, on {backend.name()}, {layers} layers, 4 bits; a step of {STEP} tokens."
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", counted])


def measured(shape: str, overrides: dict[str, int]) -> list[tuple[int, int]]:
    """Return the working set, measured and computed, of a step that fills each length of cache."""
    with tempfile.TemporaryDirectory() as directory:
        source, quantized = Path(directory) / "source", Path(directory) / "quantized"
        config = write_random_checkpoint(source, shape=shape, overrides=overrides)
        convert(str(source), str(quantized), quantize=True, verify=False)
        model = load_model(quantized)
    dtype = model.model.norm.weight.dtype
    figures = []
    for tokens in CONTEXTS:
        cache, heads = make_cache(model), (1, config.num_key_value_heads, tokens, config.head_dim)
        for layer in cache:
            layer.restore(
                [mx.zeros(heads, dtype), mx.zeros(heads, dtype)], offset=tokens - STEP, written=0, dtype=dtype
            )
        mx.eval([layer.state for layer in cache])
        held = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(model.next_logits(mx.ones((1, STEP), mx.int32), cache), [layer.state for layer in cache])
        computed = working_set(config, tokens, size=dtype.size, is_fused=backend.has_fused_kernels())
        figures.append((mx.get_peak_memory() - held, computed))
    return figures


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(description="Print what a run takes in memory, for the published shapes.")
    parser.add_argument("--measure", action="store_true", help="measure the working set too (minutes on a CPU)")
    parser.add_argument("--layers", type=int, default=2, help="layers of the measured model (default: %(default)s)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Print the tables and return an exit status."""
    options = vars(build_parser().parse_args(argv))
    return run_command(lambda: _print(**options))


def _print(measure: bool, layers: int) -> None:
    print(table())
    if measure:
        print()
        print(measured_table(layers))


if __name__ == "__main__":
    sys.exit(main())
