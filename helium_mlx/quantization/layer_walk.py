"""A walk through a checkpoint's layers, once, with any number of streams of hidden states side by side.

One matrix after the other is read whole, used by every stream, each with weights of its own, and dropped: so memory
holds the streams and the matrices of one layer, in float32. What a layer computes is `model/helium.py`'s, with other
projections put into it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import cast

import mlx.core as mx

from helium_mlx.checkpoint import layout
from helium_mlx.checkpoint.checkpoint import Checkpoint
from helium_mlx.checkpoint.row_blocks import RowBlock, all_finite, dequantized, places_of, read_ahead, row_blocks_of
from helium_mlx.errors import CheckpointError
from helium_mlx.kv_cache.masks import causal_mask
from helium_mlx.model.helium import HeliumDecoderLayer, HeliumForCausalLM
from helium_mlx.model.rope import RotaryEmbedding
from helium_mlx.model.streamed import streamed_model

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"

# The modules of a layer that are given the same inputs, in the order of the forward pass.
STAGES = (
    layout.MERGED["self_attn.qkv_proj"],
    ("self_attn.o_proj",),
    layout.MERGED["mlp.gate_up_proj"],
    ("mlp.down_proj",),
)


class Stream:
    """Some windows on their way through the model, with weights of their own.

    `hidden` are the residual streams and `inputs` what the next matrix is given, float32 (B, L, columns), a window an
    entry.
    """

    def __init__(self, hidden: Sequence[mx.array], inputs: Sequence[mx.array] = ()) -> None:
        self.hidden = list(hidden)
        self.inputs = list(inputs)

    @property
    def rows(self) -> mx.array:
        """What the next matrix is given, all windows as rows (tokens, columns)."""
        return mx.concatenate([x.reshape(-1, x.shape[-1]) for x in self.inputs])

    def lacks(self, other: "Stream") -> mx.array:
        """Return what the residual stream of another one lacks, as rows (tokens, hidden_size)."""
        return mx.concatenate(
            [(h - o).reshape(-1, h.shape[-1]) for h, o in zip(self.hidden, other.hidden, strict=True)]
        )


@dataclass(frozen=True)
class Stage:
    """Modules of layer `index` that are given the same inputs, by their paths in a causal LM."""

    index: int
    number: int
    paths: tuple[str, ...]

    @property
    def adds_to_residual(self) -> bool:
        """Whether the outputs are added to the residual stream."""
        return self.number in (1, 3)

    @property
    def is_end_of_layer(self) -> bool:
        """Whether the next stage is of another layer, or there is none."""
        return self.number == len(STAGES) - 1


class LayerWalk:
    """The layers of a causal LM, stage by stage; see `walk`."""

    def __init__(self, checkpoint: Checkpoint, model: HeliumForCausalLM) -> None:
        config = checkpoint.config
        self.checkpoint, self.config = checkpoint, config
        self._places = places_of(checkpoint)
        self._model = model
        self._rope = RotaryEmbedding(
            config.rope_parameters,
            head_dim=config.head_dim,
            max_position_embeddings=config.max_position_embeddings,
            interleaved=config.interleaved_rope,
        )

    @property
    def head_path(self) -> str:
        """The module that makes the logits: the embedding itself in a tied model."""
        return EMBEDDING if self.config.tie_word_embeddings else HEAD

    def stages(self) -> Iterator[Stage]:
        """Yield the stages of all layers, in the order of the forward pass."""
        for index in range(self.config.num_hidden_layers):
            for number, parts in enumerate(STAGES):
                yield Stage(index, number, tuple(f"{layout.layer_prefix(index)}.{part}" for part in parts))

    def embeddings(self, ids: Sequence[int]) -> mx.array:
        """Return the source's embeddings of some ids, float32 (ids, columns)."""
        return self._model.body.embed_tokens(mx.array([list(ids)]))[0]

    def weight(self, path: str) -> mx.array:
        """Return a matrix of the source, float32 (rows, columns)."""
        return mx.concatenate(list(self.rows(path)))

    def rows(self, path: str) -> Iterator[mx.array]:
        """Yield a matrix of the source some rows at a time, float32. Raises CheckpointError unless all is finite."""
        for block, data in read_ahead(row_blocks_of(self.checkpoint, self._places, f"{path}.weight")):
            rows = _dense(block, data)
            if not all_finite(rows).item():
                raise CheckpointError(f"{block.name} has values that are not finite; take an intact source")
            yield rows

    def begin(self, stream: Stream) -> None:
        """Set a stream's inputs to what the first stage is given."""
        stream.inputs = [self._layer(0).input_layernorm(h) for h in stream.hidden]
        mx.eval(stream.inputs)

    def advance(self, stream: Stream, stage: Stage, weights: Mapping[str, mx.array]) -> None:
        """Apply a stage's matrices, float32 by path, to a stream; its inputs become those of the next stage."""
        layer = self._layer(stage.index)
        products = _Product([weights[path] for path in stage.paths], self._biases(stage.paths))
        # Each window is evaluated before the next begins, so that what lies between is never there for all.
        for number, x in enumerate(stream.inputs):
            stream.hidden[number], stream.inputs[number] = self._after(layer, stage, products, stream.hidden[number], x)
            mx.eval(stream.hidden[number], stream.inputs[number])

    def _after(
        self, layer: HeliumDecoderLayer, stage: Stage, product: "_Product", h: mx.array, x: mx.array
    ) -> tuple[mx.array, mx.array]:
        """Return a window's residual stream and the next stage's inputs."""
        if stage.number == 0:
            layer.self_attn.qkv_proj, layer.self_attn.o_proj = product, _unchanged
            length = x.shape[1]
            return h, layer.self_attn(x, causal_mask(length), self._rope.at(0, length), None)[0]
        if stage.number == 1:
            h = h + product(x)
            return h, layer.post_attention_layernorm(h)
        if stage.number == 2:
            layer.mlp.gate_up_proj, layer.mlp.down_proj = product, _unchanged
            return h, layer.mlp(x)
        h = h + product(x)
        is_last = stage.index + 1 == self.config.num_hidden_layers
        return h, (self._model.body.norm if is_last else self._layer(stage.index + 1).input_layernorm)(h)

    def _layer(self, index: int) -> HeliumDecoderLayer:
        return self._model.body.layers[index]

    def _biases(self, paths: Sequence[str]) -> mx.array | None:
        places = [self._places[f"{path}.bias"] for path in paths if f"{path}.bias" in self._places]
        if not places:
            return None
        return mx.concatenate([reader.read(info).astype(mx.float32) for reader, info in places])


class EmbeddingTable:
    """The embeddings of the tokens that some windows have, float32."""

    def __init__(self, layers: LayerWalk, windows: Iterable[mx.array]) -> None:
        ids = sorted({token for window in windows for token in _ids(window)})
        self._places = {token: row for row, token in enumerate(ids)}
        self._rows = layers.embeddings(ids)

    def changed(self, change: Callable[[mx.array], mx.array]) -> "EmbeddingTable":
        """Return a table whose rows (tokens, columns) went through `change`."""
        table = copy(self)
        table._rows = change(self._rows)
        return table

    def stream(self, windows: Sequence[mx.array]) -> Stream:
        """Return windows of ids (1, L) as a stream at its start."""
        return Stream([self._rows[mx.array([[self._places[token] for token in _ids(window)]])] for window in windows])


def _ids(window: mx.array) -> list[int]:
    return cast("list[int]", window[0].tolist())


@contextmanager
def walk(checkpoint: Checkpoint) -> Iterator[LayerWalk]:
    """Give the walk through a causal LM at full precision, for as long as the context lasts."""
    with streamed_model(checkpoint) as model:
        yield LayerWalk(checkpoint, cast(HeliumForCausalLM, model))


class _Product:
    """x @ concatenate(weights).T + biases."""

    def __init__(self, weights: Sequence[mx.array], biases: mx.array | None) -> None:
        self._weight = mx.concatenate(list(weights)) if len(weights) > 1 else weights[0]
        self._biases = biases

    def __call__(self, x: mx.array) -> mx.array:
        product = x @ self._weight.T
        return product if self._biases is None else product + self._biases


def _unchanged(x: mx.array) -> mx.array:
    return x


def _dense(block: RowBlock, data: dict[str, bytes]) -> mx.array:
    arrays = block.arrays(data)
    return arrays["weight"].astype(mx.float32) if block.settings is None else dequantized(arrays, block.settings)
