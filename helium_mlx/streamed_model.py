"""A checkpoint's model that reads its weights anew on every pass, a few megabytes of rows at a time.

For checks of checkpoints that are larger than memory: the forward pass is `model.py`'s, in float32, with matrices that
live on disk. Slow for more than a few tokens.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import cycle
from typing import cast

import mlx.core as mx

from helium_mlx import backend, layout
from helium_mlx.checkpoint import Checkpoint, as_parameter
from helium_mlx.model import (
    HeliumForCausalLM,
    HeliumForSequenceClassification,
    HeliumForTokenClassification,
    HeliumModel,
)
from helium_mlx.pretrained import HeliumPreTrainedModel
from helium_mlx.quantization import QuantizationSettings
from helium_mlx.safetensors_header import TensorInfo
from helium_mlx.slabs import Places, Slab, dequantized, places_of, read_ahead, slabs_of
from helium_mlx.tensor_reader import TensorReader, as_array

MODEL_CLASSES: dict[layout.Architecture, Callable[..., HeliumPreTrainedModel]] = {
    "Model": HeliumModel,
    "ForCausalLM": HeliumForCausalLM,
    "ForSequenceClassification": HeliumForSequenceClassification,
    "ForTokenClassification": HeliumForTokenClassification,
}


@contextmanager
def streamed_model(checkpoint: Checkpoint) -> Iterator[HeliumPreTrainedModel]:
    """Give the model of a checkpoint, computing in float32, for as long as the context lasts."""
    with ExitStack() as stack:
        readers = {path: stack.enter_context(TensorReader(path)) for path in checkpoint.files}
        places = places_of(checkpoint, readers)
        linears: list[StreamedLinear] = []

        def linear(*paths: str) -> StreamedLinear:
            linears.append(StreamedLinear(checkpoint, places, paths))
            return linears[-1]

        model = MODEL_CLASSES[checkpoint.architecture](checkpoint.config)
        body = model.body
        # In the order of the forward pass, in which the slabs are read ahead.
        for index, layer in enumerate(body.layers):
            prefix = f"{layout.layer_prefix(index)}."
            layer.self_attn.qkv_proj = linear(*(prefix + part for part in layout.MERGED["self_attn.qkv_proj"]))
            layer.self_attn.o_proj = linear(f"{prefix}self_attn.o_proj")
            layer.mlp.gate_up_proj = linear(*(prefix + part for part in layout.MERGED["mlp.gate_up_proj"]))
            layer.mlp.down_proj = linear(f"{prefix}mlp.down_proj")
        embedding = StreamedEmbedding(checkpoint, places, "model.embed_tokens")
        body.embed_tokens = embedding  # pyright: ignore[reportAttributeAccessIssue]
        if checkpoint.architecture == "ForCausalLM" and checkpoint.config.tie_word_embeddings:
            embedding.as_linear = linear("model.embed_tokens")
        for head in ("lm_head", "score"):
            if f"{head}.weight" in places:
                setattr(model, head, linear(head))
        _load_the_rest(model, places)
        slabs = stack.enter_context(closing(read_ahead(slab for each in cycle(linears) for slab in each.slabs)))
        for each in linears:
            each.source = slabs
        model.eval()
        yield model


class StreamedLinear:
    """Products with matrices that lie on disk, stacked along their rows: `x @ concatenate(matrices).T + biases`.

    `source` gives the slabs of all of a model's matrices, over and over, in the order in which it uses them.
    """

    source: Iterator[tuple[Slab, dict[str, bytes]]]

    def __init__(self, checkpoint: Checkpoint, places: Places, paths: tuple[str, ...]) -> None:
        self.slabs = [slab for path in paths for slab in slabs_of(checkpoint, places, f"{path}.weight")]
        self._biases = [places[f"{path}.bias"] for path in paths if f"{path}.bias" in places]

    def __call__(self, x: mx.array) -> mx.array:
        """Return the products with `x` (..., columns), evaluated, float32 (..., rows)."""
        mx.eval(x)
        products: list[mx.array] = []
        streams = backend.conversion_streams()
        for wanted, stream in zip(self.slabs, cycle(streams)):
            slab, octets = next(self.source)
            assert slab is wanted, (slab.name, wanted.name)
            with mx.stream(stream):
                products.append(_product(x, slab, octets))
            mx.async_eval(products[-1])
            if len(products) > 2 * len(streams):
                mx.eval(products[-1 - 2 * len(streams)])
        output = mx.concatenate(products, axis=-1)
        if self._biases:
            output = output + mx.concatenate([reader.read(info).astype(mx.float32) for reader, info in self._biases])
        mx.eval(output)
        return output


class StreamedEmbedding:
    """An embedding of which only the rows that are asked for are read; `as_linear` is the head of a tied model."""

    as_linear: StreamedLinear

    def __init__(self, checkpoint: Checkpoint, places: Places, path: str) -> None:
        self._settings = checkpoint.settings(path)
        self._parts = {
            name.rpartition(".")[2]: place for name, place in places.items() if name.rpartition(".")[0] == path
        }

    def __call__(self, ids: mx.array) -> mx.array:
        """Return the rows of `ids` (B, L), float32 (B, L, columns)."""
        rows = [self._row(index) for index in cast(list[int], ids.reshape(-1).tolist())]
        return mx.concatenate(rows).reshape(*ids.shape, -1)

    def _row(self, index: int) -> mx.array:
        arrays = {suffix: reader.read(info, index, 1) for suffix, (reader, info) in self._parts.items()}
        if self._settings is None:
            return arrays["weight"].astype(mx.float32)
        return dequantized(arrays, self._settings)


def _product(x: mx.array, slab: Slab, octets: dict[str, bytes]) -> mx.array:
    arrays = {suffix: as_array(octets[suffix], info) for suffix, (_, info) in slab.stored.items()}
    if slab.settings is None:
        return x @ arrays["weight"].astype(mx.float32).T
    return _quantized_product(x, arrays, slab.settings)


def _quantized_product(x: mx.array, arrays: dict[str, mx.array], settings: QuantizationSettings) -> mx.array:
    scales, biases = arrays["scales"], arrays.get("biases")
    if biases is not None:
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    return mx.quantized_matmul(
        x, arrays["weight"], scales, biases, True, settings.group_size, settings.bits, settings.mode
    )


def _load_the_rest(model: HeliumPreTrainedModel, places: dict[str, tuple[TensorReader, TensorInfo]]) -> None:
    """Give the model its norms and the parameters of its activation, which are small."""
    weights = {}
    for name, (reader, info) in places.items():
        if name.endswith(("norm.weight", "layernorm.weight")) or ".act_fn." in name:
            weights[name] = as_parameter(name, reader.read(info), mx.float32, model.config)
    if model.architecture == "Model":
        weights = {layout.name_on_disk(name, "Model"): tensor for name, tensor in weights.items()}
    model.load_weights(list(weights.items()), strict=False)
