"""A checkpoint's model that reads its weights anew on every pass, a few megabytes of rows at a time.

For checks of checkpoints that are larger than memory: the forward pass is `helium.py`'s, in float32, with matrices that
live on disk. Slow for more than a few tokens.
"""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import cycle
from typing import cast

import mlx.core as mx

from helium_mlx import backend
from helium_mlx.checkpoint import layout
from helium_mlx.checkpoint.checkpoint import Checkpoint, as_parameter
from helium_mlx.checkpoint.quantization_settings import ModuleSettings, QuantizationSettings
from helium_mlx.checkpoint.row_blocks import Places, RowBlock, dequantized, places_of, read_ahead, row_blocks_of
from helium_mlx.model.helium import (
    HeliumForCausalLM,
    HeliumForSequenceClassification,
    HeliumForTokenClassification,
    HeliumModel,
)
from helium_mlx.model.pretrained import HeliumPreTrainedModel

MODEL_CLASSES: dict[layout.Architecture, Callable[..., HeliumPreTrainedModel]] = {
    "Model": HeliumModel,
    "ForCausalLM": HeliumForCausalLM,
    "ForSequenceClassification": HeliumForSequenceClassification,
    "ForTokenClassification": HeliumForTokenClassification,
}


@dataclass(frozen=True)
class Converted:
    """Says that weights are to be used as a conversion would write them: packed like this, the rest in `dtype`.

    `parts` makes the parts of some rows, keyed by suffix, of their bytes (`quantization.plain.converted_parts`).
    """

    settings: ModuleSettings
    dtype: mx.Dtype
    parts: Callable[
        [RowBlock, dict[str, bytes], QuantizationSettings | None, mx.Dtype], tuple[dict[str, mx.array], mx.array]
    ]


@contextmanager
def streamed_model(
    checkpoint: Checkpoint, *, converted: Converted | None = None, on_block: Callable[[], None] = lambda: None
) -> Iterator[HeliumPreTrainedModel]:
    """Give the model of a checkpoint, computing in float32, for as long as the context lasts.

    `on_block` is called for each block of a matrix that has been multiplied.
    """
    places = places_of(checkpoint)
    linears: list[StreamedLinear] = []

    def linear(*paths: str) -> StreamedLinear:
        linears.append(StreamedLinear(checkpoint, places, paths, converted, on_block))
        return linears[-1]

    model = MODEL_CLASSES[checkpoint.architecture](checkpoint.config)
    body = model.body
    # In the order of the forward pass, in which the blocks are read ahead.
    for index, layer in enumerate(body.layers):
        prefix = f"{layout.layer_prefix(index)}."
        layer.self_attn.qkv_proj = linear(*(prefix + part for part in layout.MERGED["self_attn.qkv_proj"]))
        layer.self_attn.o_proj = linear(f"{prefix}self_attn.o_proj")
        layer.mlp.gate_up_proj = linear(*(prefix + part for part in layout.MERGED["mlp.gate_up_proj"]))
        layer.mlp.down_proj = linear(f"{prefix}mlp.down_proj")
    embedding = StreamedEmbedding(checkpoint, places, "model.embed_tokens", converted)
    body.embed_tokens = embedding  # pyright: ignore[reportAttributeAccessIssue]
    if checkpoint.architecture == "ForCausalLM" and checkpoint.config.tie_word_embeddings:
        embedding.as_linear = linear("model.embed_tokens")
    for head in ("lm_head", "score"):
        if f"{head}.weight" in places:
            setattr(model, head, linear(head))
    _load_the_rest(model, places, converted)
    model.eval()
    with closing(read_ahead(block for each in cycle(linears) for block in each.blocks)) as blocks:
        for each in linears:
            each.source = blocks
        yield model


class StreamedLinear:
    """Products with matrices that lie on disk, stacked along their rows: `x @ concatenate(matrices).T + biases`.

    `source` gives the blocks of all of a model's matrices, over and over, in the order in which it uses them.
    """

    source: Iterator[tuple[RowBlock, dict[str, bytes]]]

    def __init__(
        self,
        checkpoint: Checkpoint,
        places: Places,
        paths: tuple[str, ...],
        converted: Converted | None,
        on_block: Callable[[], None],
    ) -> None:
        self.blocks = [block for path in paths for block in row_blocks_of(checkpoint, places, f"{path}.weight")]
        self._biases = [places[f"{path}.bias"] for path in paths if f"{path}.bias" in places]
        self._converted = converted
        self._on_block = on_block

    def __call__(self, x: mx.array) -> mx.array:
        """Return the products with `x` (..., columns), evaluated, float32 (..., rows)."""
        mx.eval(x)
        products: list[mx.array] = []
        streams = backend.conversion_streams()
        for wanted, stream in zip(self.blocks, cycle(streams)):
            block, data = next(self.source)
            assert block is wanted, (block.name, wanted.name)
            with mx.stream(stream):
                products.append(_product(x, *_parts(block, data, self._converted)))
            mx.async_eval(products[-1])
            if len(products) > 2 * len(streams):
                mx.eval(products[-1 - 2 * len(streams)])
            self._on_block()
        output = mx.concatenate(products, axis=-1)
        if self._biases:
            biases = [_in_dtype(reader.read(info), self._converted) for reader, info in self._biases]
            output = output + mx.concatenate(biases)
        mx.eval(output)
        return output


class StreamedEmbedding:
    """An embedding of which only the rows that are asked for are read; `as_linear` is the head of a tied model."""

    as_linear: StreamedLinear

    def __init__(self, checkpoint: Checkpoint, places: Places, path: str, converted: Converted | None) -> None:
        self._whole = next(row_blocks_of(checkpoint, places, f"{path}.weight"))
        self._converted = converted

    def __call__(self, ids: mx.array) -> mx.array:
        """Return the rows of `ids` (B, L), float32 (B, L, columns)."""
        rows = [self._row(index) for index in cast(list[int], ids.reshape(-1).tolist())]
        return mx.concatenate(rows).reshape(*ids.shape, -1)

    def _row(self, index: int) -> mx.array:
        block = replace(self._whole, first_row=index, n_rows=1)
        arrays, settings = _parts(block, block.read(), self._converted)
        return arrays["weight"].astype(mx.float32) if settings is None else dequantized(arrays, settings)


def _parts(
    block: RowBlock, data: dict[str, bytes], converted: Converted | None
) -> tuple[dict[str, mx.array], QuantizationSettings | None]:
    """Return a block's arrays, as they are or as they would be written, and how they are packed."""
    if converted is None:
        return block.arrays(data), block.settings
    settings = converted.settings(block.name.rpartition(".")[0])
    return converted.parts(block, data, settings, converted.dtype)[0], settings


def _product(x: mx.array, arrays: dict[str, mx.array], settings: QuantizationSettings | None) -> mx.array:
    if settings is None:
        return x @ arrays["weight"].astype(mx.float32).T
    scales, biases = arrays["scales"], arrays.get("biases")
    if biases is not None:
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    return mx.quantized_matmul(
        x, arrays["weight"], scales, biases, True, settings.group_size, settings.bits, settings.mode
    )


def _in_dtype(tensor: mx.array, converted: Converted | None) -> mx.array:
    return (tensor if converted is None else tensor.astype(converted.dtype)).astype(mx.float32)


def _load_the_rest(model: HeliumPreTrainedModel, places: Places, converted: Converted | None) -> None:
    """Give the model its norms and the parameters of its activation, which are small."""
    weights = {}
    for name, (reader, info) in places.items():
        if name.endswith("norm.weight") or ".act_fn." in name:
            weights[name] = as_parameter(name, _in_dtype(reader.read(info), converted), mx.float32, model.config)
    if model.architecture == "Model":
        weights = {layout.name_on_disk(name, "Model"): tensor for name, tensor in weights.items()}
    model.load_weights(list(weights.items()), strict=False)
