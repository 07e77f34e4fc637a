"""The checks of a forward pass's arguments, all made before anything is computed.

transformers broadcasts or ignores much of what does not fit; here each is an ArgumentError that names the argument,
what came and what was expected. Ids, labels and positions are read for it, which for arrays that were just made from
lists costs nothing; generation, whose tokens are still being computed, goes past these checks. Within `mx.compile` and
`mx.vmap` arrays have shapes and no values: what is wrong with values is then not found.
"""

import math
from typing import cast

import mlx.core as mx

from helium_mlx import backend
from helium_mlx.backend import dtype_name
from helium_mlx.checkpoint.config import HeliumConfig
from helium_mlx.errors import ArgumentError, KeywordError, unknown_keyword
from helium_mlx.kv_cache.cache import KVCache
from helium_mlx.model.losses import IGNORE_INDEX, LossOptions, infer_problem_type
from helium_mlx.option_values import plain, real, whole

Shape = tuple[int, ...]


def check_inputs(
    config: HeliumConfig,
    past_key_values: list[KVCache] | None,
    input_ids: mx.array | None,
    inputs_embeds: mx.array | None,
    attention_mask: mx.array | None,
    position_ids: mx.array | None,
    cache_position: mx.array | None,
) -> None:
    """Raise ArgumentError unless the inputs of a forward pass, and the cache before them, fit the model."""
    past = length_of_past(past_key_values, config)
    B, L = _batch_and_length(input_ids, inputs_embeds)
    for cache in past_key_values or []:
        if cache.batch_size not in (None, B):
            raise ArgumentError(f"past_key_values holds {cache.batch_size} rows; the input has {B}")
    if input_ids is not None:
        _require_integers("input_ids", input_ids)
        _require_range("input_ids", input_ids, 0, config.vocab_size, "vocab_size")
    elif inputs_embeds is not None:
        if not mx.issubdtype(inputs_embeds.dtype, mx.floating):
            raise ArgumentError(
                f"inputs_embeds has dtype {dtype_name(inputs_embeds.dtype)}; expected a floating-point one"
            )
        if inputs_embeds.shape[-1] != config.hidden_size:
            raise ArgumentError(
                f"inputs_embeds has shape {inputs_embeds.shape}; its last size must be hidden_size {config.hidden_size}"
            )
    if attention_mask is not None:
        _check_mask(attention_mask, B, L, past + L, config.num_attention_heads)
    if position_ids is not None:
        _require_array("position_ids", position_ids)
        _require_integers("position_ids", position_ids)
        _require_shape("position_ids", position_ids, [(B, L), (1, L)])
        _require_range("position_ids", position_ids, 0, 2**31, "2^31")
    if cache_position is not None:
        _check_cache_position(cache_position, past, L)


def length_of_past(past_key_values: object, config: HeliumConfig) -> int:
    """Return how many tokens a cache holds; raise ArgumentError if it is not a cache of this model."""
    if past_key_values is None:
        return 0
    layers = config.num_hidden_layers
    if not isinstance(past_key_values, (list, tuple)) or not all(isinstance(c, KVCache) for c in past_key_values):
        raise ArgumentError(
            f"past_key_values is {type(past_key_values).__name__}; expected a list of caches, one a layer: make_cache"
        )
    offsets = sorted({entry.offset for entry in past_key_values})
    if len(past_key_values) != layers or len(offsets) > 1:
        raise ArgumentError(
            f"past_key_values has {len(past_key_values)} layers at {offsets}; expected {layers} at one: make_cache"
        )
    if len({id(entry) for entry in past_key_values}) < layers:
        raise ArgumentError("past_key_values has one cache in several layers; expected one for each: make_cache")
    if any(entry.kind != past_key_values[0].kind for entry in past_key_values):
        raise ArgumentError("past_key_values has caches of different kinds; expected one for all layers: make_cache")
    expected = (config.num_key_value_heads, config.head_dim)
    for entry in past_key_values:
        if entry.heads_and_dim is not None and entry.heads_and_dim != expected:
            raise ArgumentError(
                f"past_key_values holds (heads, head_dim) {entry.heads_and_dim}; this model has {expected}"
            )
    return offsets[0]


def check_labels(
    labels: mx.array | None,
    input_ids: mx.array | None,
    inputs_embeds: mx.array | None,
    classes: int,
    *,
    length: int | None = None,
    name: str = "labels",
) -> None:
    """Raise ArgumentError unless `labels` has one class, or -100, for each token, or for `length` of them."""
    if labels is None:
        return
    B, L = _batch_and_length(input_ids, inputs_embeds)
    _require_array(name, labels)
    _require_integers(name, labels)
    _require_shape(name, labels, [(B, L if length is None else length)])
    _require_classes(name, labels, classes)


def check_loss_options(
    options: LossOptions,
    labels: mx.array | None,
    input_ids: mx.array | None,
    inputs_embeds: mx.array | None,
    classes: int,
    length: int,
) -> None:
    """Raise ArgumentError for options of a causal LM's loss that there are not, or that fit neither each other nor it.

    `length` positions have logits.
    """
    for name in options.keys() - LossOptions.__annotations__.keys():
        raise KeywordError(unknown_keyword("the model", name, [*LossOptions.__annotations__]))
    shifted, count = options.get("shift_labels"), options.get("num_items_in_batch")
    if shifted is None:
        check_labels(labels, input_ids, inputs_embeds, classes, length=length)
    check_labels(shifted, input_ids, inputs_embeds, classes, length=length, name="shift_labels")
    if count is not None and (real(count) is None or cast(float, real(count)) <= 0):
        raise ArgumentError(f"num_items_in_batch is {count!r}; expected a number above 0, by which the loss is divided")


def check_class_labels(
    labels: mx.array | None, input_ids: mx.array | None, inputs_embeds: mx.array | None, config: HeliumConfig
) -> str | None:
    """Return the problem type of a sequence classification; raise ArgumentError for labels that do not fit it."""
    if labels is None:
        return None
    _require_array("labels", labels)
    B, classes = _batch_and_length(input_ids, inputs_embeds)[0], config.num_labels
    problem_type = config.problem_type or infer_problem_type(classes, labels)
    if problem_type == "single_label_classification":
        _require_integers("labels", labels)
        _require_shape("labels", labels, [(B,), (B, 1)])
        _require_classes("labels", labels, classes)
        return problem_type
    _require_floats("labels", labels, problem_type)
    if problem_type == "multi_label_classification":
        _require_shape("labels", labels, [(B, classes)])
        if not _holds((labels >= 0) & (labels <= 1)):
            raise ArgumentError(f"labels has values outside of 0 to 1; {problem_type} expects 1 where a label applies")
    else:
        _require_shape("labels", labels, [(B,), (B, 1)] if classes == 1 else [(B, classes)])
        if not _holds(mx.isfinite(labels)):
            raise ArgumentError(f"labels has values that are not finite; {problem_type} expects numbers")
    return problem_type


def check_poolable(input_ids: mx.array | None, inputs_embeds: mx.array | None, config: HeliumConfig) -> None:
    """Raise ArgumentError for several rows without a pad token: where each ends could not be told."""
    B, _ = _batch_and_length(input_ids, inputs_embeds)
    if B > 1 and config.pad_token_id is None:
        raise ArgumentError(f"input has {B} rows, but config.pad_token_id is None; set it, or give one row at a time")


def positions_to_keep(
    logits_to_keep: int | mx.array, input_ids: mx.array | None, inputs_embeds: mx.array | None
) -> slice | mx.array:
    """Return the positions that `logits_to_keep` names, as a slice or as indices (count,).

    A number is so many from the end, 0 for all, and a negative one leaves out so many at the beginning, as in
    transformers; booleans (L,) are true where a position is kept. Raises ArgumentError unless some are left.
    """
    _, L = _batch_and_length(input_ids, inputs_embeds)
    if isinstance(logits_to_keep, mx.array):
        if logits_to_keep.dtype == mx.bool_:
            _require_shape("logits_to_keep", logits_to_keep, [(L,)])
            kept = [place for place, is_kept in enumerate(cast("list[bool]", logits_to_keep.tolist())) if is_kept]
            logits_to_keep = mx.array(kept, mx.int32)
        _require_integers("logits_to_keep", logits_to_keep)
        if logits_to_keep.ndim != 1 or logits_to_keep.size == 0:
            raise ArgumentError(f"logits_to_keep has shape {logits_to_keep.shape}; expected indices (count,)")
        _require_range("logits_to_keep", logits_to_keep, -L, L, "the number of positions")
        return logits_to_keep
    if (count := whole(logits_to_keep)) is None or not -L < count <= L:
        raise ArgumentError(
            f"logits_to_keep is {logits_to_keep!r}; expected a number from {1 - L} to {L}, or an index array"
        )
    return slice(L - count if count > 0 else -count, L)


def _batch_and_length(input_ids: mx.array | None, inputs_embeds: mx.array | None) -> tuple[int, int]:
    if (input_ids is None) == (inputs_embeds is None):
        came = "neither" if input_ids is None else "both"
        raise ArgumentError(f"{came} of input_ids and inputs_embeds came; expected exactly one of them")
    name, given, ndim = ("inputs_embeds", inputs_embeds, 3) if input_ids is None else ("input_ids", input_ids, 2)
    assert given is not None
    _require_array(name, given)
    if given.ndim != ndim or 0 in given.shape:
        form = "(batch, length)" if ndim == 2 else "(batch, length, hidden_size)"
        raise ArgumentError(f"{name} has shape {given.shape}; expected {form}, none of them 0")
    return given.shape[0], given.shape[1]


def check_flags(**flags: object) -> None:
    """Raise ArgumentError for a flag that is neither true, false nor None, which stands for the config's."""
    for name, value in flags.items():
        if value is not None and not isinstance(plain(value), bool):
            raise ArgumentError(f"{name} is {type(value).__name__}; expected True, False or None")


def check_dtypes(past_key_values: list[KVCache] | None, inputs_embeds: mx.array | None, dtype: mx.Dtype) -> None:
    """Raise ArgumentError unless embeddings and cached keys have the dtype that the model computes in."""
    came = [("inputs_embeds", None if inputs_embeds is None else inputs_embeds.dtype)]
    came += [("past_key_values", entry.dtype) for entry in past_key_values or []]
    for name, given in came:
        if given is not None and given != dtype:
            raise ArgumentError(f"{name} has dtype {dtype_name(given)}; the model computes in {dtype_name(dtype)}")


def _check_mask(mask: mx.array, B: int, L: int, T: int, heads: int) -> None:
    _require_array("attention_mask", mask)
    if mask.dtype == mx.complex64:
        raise ArgumentError("attention_mask has dtype complex64; expected integers, booleans or floats")
    if mask.ndim == 2:
        _require_shape("attention_mask", mask, [(B, T)])
        if not _holds((mask == 0) | (mask == 1)):
            raise ArgumentError("attention_mask has values other than 0 and 1; expected 1 for a token, 0 for padding")
        return
    _require_shape("attention_mask", mask, [(b, h, L, T) for b in (B, 1) for h in (1, heads)])
    if mx.issubdtype(mask.dtype, mx.integer) and not _holds((mask == 0) | (mask == 1)):
        raise ArgumentError(
            f"attention_mask has dtype {dtype_name(mask.dtype)} and values other than 0 and 1; a 4-D one must be 1 or "
            "True where to attend, or floats, which are added"
        )
    if mx.issubdtype(mask.dtype, mx.floating) and not _holds(mask < math.inf):
        raise ArgumentError("attention_mask has NaN or +inf in it; expected numbers to add, -inf at the least")


def _check_cache_position(cache_position: mx.array, past: int, L: int) -> None:
    _require_array("cache_position", cache_position)
    _require_integers("cache_position", cache_position)
    _require_shape("cache_position", cache_position, [(L,)])
    if not _holds(cache_position.astype(mx.int64) == mx.arange(past, past + L)):
        raise ArgumentError(
            f"cache_position is {_came(cache_position)}; the cache goes on at {past}, "
            f"so expected {past} to {past + L - 1}"
        )


def _holds(condition: mx.array) -> bool:
    """Return whether all of a condition is true, or cannot be known."""
    return backend.value_of(condition.all()) is not False


def _require_array(name: str, value: object) -> None:
    if not isinstance(value, mx.array):
        raise ArgumentError(f"{name} is {type(value).__name__}; expected an mx.array")


def _require_integers(name: str, array: mx.array) -> None:
    if not mx.issubdtype(array.dtype, mx.integer):
        raise ArgumentError(f"{name} has dtype {dtype_name(array.dtype)}; expected integers")


def _require_floats(name: str, array: mx.array, purpose: str) -> None:
    if not mx.issubdtype(array.dtype, mx.floating):
        raise ArgumentError(f"{name} has dtype {dtype_name(array.dtype)}; {purpose} expects floating-point numbers")


def _require_shape(name: str, array: mx.array, allowed: list[Shape]) -> None:
    if array.shape not in allowed:
        expected = " or ".join(map(str, dict.fromkeys(allowed)))
        raise ArgumentError(f"{name} has shape {array.shape}; expected {expected}")


def _require_range(name: str, array: mx.array, low: int, high: int, bound: str) -> None:
    smallest, largest = backend.value_of(array.min()), backend.value_of(array.max())
    if smallest is None or largest is None:
        return
    if smallest < low or largest >= high:
        wrong = smallest if smallest < low else largest
        raise ArgumentError(f"{name} has the value {wrong}; expected {low} to {high - 1} ({bound} is {high})")


def _require_classes(name: str, labels: mx.array, classes: int) -> None:
    # MLX compares with no number that the dtype does not reach, such as -100 in uint32.
    labels = labels.astype(mx.int64).reshape(-1)
    wrong = (labels != IGNORE_INDEX) & ((labels < 0) | (labels >= classes))
    if not _holds(~wrong):
        value = labels[mx.argmax(wrong)].item()
        raise ArgumentError(f"{name} has the value {value}; expected 0 to {classes - 1}, or {IGNORE_INDEX} to ignore")


def _came(value: int | mx.array) -> str:
    """Return a value for an error of one line: all of a short array, the ends of a long one."""
    if not isinstance(value, mx.array):
        return repr(value)
    items = [str(item) for item in cast(list[int], value.tolist())]
    return f"[{', '.join(items if len(items) <= 8 else [*items[:3], '...', *items[-3:]])}]"
