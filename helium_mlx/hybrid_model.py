"""A reference model with some of its modules taken from a candidate: shows what each group of layers contributes.

Both are checkpoints of one architecture, packed in any two ways; tensors are read as they are used, so that one model's
worth is in memory.
"""

from collections.abc import Callable
from itertools import pairwise

import mlx.core as mx

from helium_mlx import layout
from helium_mlx.checkpoint import Checkpoint, as_parameter, read_tensors
from helium_mlx.errors import ComparisonError
from helium_mlx.model import HeliumForCausalLM
from helium_mlx.quantization import QuantizationSettings, unquantized

# As many bars as can be told apart, and as many passes as anybody waits for.
MAX_LAYER_GROUPS = 8

IsTaken = Callable[[str], bool]
"""Says for a tensor's or module's name in a causal LM whether it comes from the candidate."""


def layer_groups(checkpoint: Checkpoint) -> dict[str, IsTaken]:
    """Return groups of modules by name, which together are the whole model: embedding, runs of layers, head.

    The final norm goes with the head, or with the embedding where that is the head.
    """
    config = checkpoint.config
    n_layers, is_tied = config.num_hidden_layers, config.tie_word_embeddings
    count = min(n_layers, MAX_LAYER_GROUPS)
    edges = [n_layers * index // count for index in range(count + 1)]
    outside = "model.embed_tokens", "model.norm", "lm_head"
    groups = {"embedding and head": _below(*outside)} if is_tied else {"embedding": _below(outside[0])}
    for first, end in pairwise(edges):
        name = f"layer {first}" if end == first + 1 else f"layers {first} to {end - 1}"
        groups[name] = _below(*map(layout.layer_prefix, range(first, end)))
    return groups if is_tied else groups | {"head": _below(*outside[1:])}


def hybrid_model(
    reference: Checkpoint, candidate: Checkpoint, is_taken: IsTaken, *, dtype: mx.Dtype
) -> HeliumForCausalLM:
    """Return the reference's causal LM, computing in `dtype`, with what `is_taken` names from the candidate.

    Raises ComparisonError if the two are not of one architecture.
    """
    require_same_shape(reference, candidate)
    config = reference.config

    def settings(path: str) -> QuantizationSettings | None:
        return (candidate if is_taken(path) else reference).settings(path)

    model = HeliumForCausalLM(config, settings)
    tensors = {name: tensor for name, tensor in read_tensors(reference).items() if not is_taken(name)}
    tensors |= {name: tensor for name, tensor in read_tensors(candidate).items() if is_taken(name)}
    weights = {name: as_parameter(name, tensor, dtype, config) for name, tensor in tensors.items()}
    model.load_weights(list(layout.merge_projections(weights, config, settings).items()))
    del tensors, weights
    # One layer at a time, as `checkpoint.load_model` does it.
    for layer in model.model.layers:
        mx.eval(layer.parameters())
    mx.eval(model.parameters())
    model.eval()
    return model


def require_same_shape(reference: Checkpoint, candidate: Checkpoint) -> None:
    """Raise ComparisonError unless modules of the one fit into the other."""
    shapes = [dict(layout.tensor_shapes(each.config, unquantized)) for each in (reference, candidate)]
    families = {each.config.model_type for each in (reference, candidate)}
    if shapes[0] != shapes[1] or len(families) > 1:
        raise ComparisonError(
            f"{candidate.directory} is not of the shape of {reference.directory}, so its layers cannot be put in there"
        )


def _below(*paths: str) -> IsTaken:
    return lambda name: any(name == path or name.startswith(f"{path}.") for path in paths)
