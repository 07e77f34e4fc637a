import mlx.core as mx
import pytest
from measures import relative_error
from mlx.utils import tree_unflatten
from tiny_checkpoints import CaseLoader, config_values

from helium_mlx.checkpoint.config import HeliumConfig
from helium_mlx.kv_cache.make import make_cache
from helium_mlx.kv_cache.masks import attention_bias, explicit_mask, mask_of_last_query, packed_sequences
from helium_mlx.model.helium import HeliumForCausalLM

IDS = mx.array([[1, *(7 + 13 * i % 89 for i in range(11))], [1, *(5 + 17 * i % 89 for i in range(11))]])
DTYPES = [mx.float32, mx.bfloat16, mx.float16]


@pytest.fixture
def model(load_case: CaseLoader) -> HeliumForCausalLM:
    return load_case("helium-gqa-bias")


def seen(bias: object) -> list[list[int]]:
    assert isinstance(bias, mx.array)
    return (bias == 0).astype(mx.int32).tolist()  # pyright: ignore[reportReturnType]


def test_no_mask_leaves_it_to_the_cache() -> None:
    assert attention_bias(None, None, length=4, offset=0, dtype=mx.float32) is None
    assert attention_bias(None, mx.arange(4)[None], length=4, offset=0, dtype=mx.float32) is None


def test_a_padding_mask_is_causal_too() -> None:
    bias = attention_bias(mx.array([[0, 1, 1], [1, 1, 0]]), None, length=3, offset=0, dtype=mx.float32)
    assert seen(bias) == [[[[0, 0, 0], [0, 1, 0], [0, 1, 1]]], [[[1, 0, 0], [1, 1, 0], [1, 1, 0]]]]


def test_a_padding_mask_covers_what_is_cached() -> None:
    bias = attention_bias(mx.array([[0, 1, 1, 1]]), None, length=2, offset=2, dtype=mx.float32)
    assert seen(bias) == [[[[0, 1, 1, 0], [0, 1, 1, 1]]]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_masked_is_the_smallest_finite_number(dtype: mx.Dtype) -> None:
    for mask in (mx.array([[0, 1]]), mx.array([[[[False, True], [True, True]]]])):
        bias = attention_bias(mask, None, length=2, offset=0, dtype=dtype)
        assert isinstance(bias, mx.array)
        assert bias.dtype == dtype
        assert bias.min().item() == mx.finfo(dtype).min


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_additive_mask_stays_finite_in_a_narrower_dtype(dtype: mx.Dtype) -> None:
    mask = mx.array([[[[0.0, mx.finfo(mx.float32).min], [-mx.inf, -0.5]]]])
    bias = attention_bias(mask, None, length=2, offset=0, dtype=dtype)
    assert isinstance(bias, mx.array)
    assert mx.isfinite(bias).all()
    assert bias[0, 0, 1, 1].item() == -0.5


def test_packed_sequences_are_numbered_row_by_row() -> None:
    numbers = packed_sequences(mx.array([[0, 1, 0, 1, 2], [3, 4, 5, 6, 8]]))
    assert numbers is not None
    assert numbers.tolist() == [[0, 0, 1, 1, 1], [0, 0, 0, 0, 1]]


@pytest.mark.parametrize("positions", [[[5]], [[0, 1, 2]], [[7, 8, 9], [0, 1, 2]]])
def test_consecutive_positions_are_one_sequence(positions: list[list[int]]) -> None:
    assert packed_sequences(mx.array(positions)) is None


def test_unsigned_positions_do_not_wrap_around() -> None:
    assert packed_sequences(mx.array([[254, 255, 0, 1]], mx.uint8)) is not None


def test_packed_sequences_do_not_see_each_other() -> None:
    bias = attention_bias(None, mx.array([[0, 1, 0, 1]]), length=4, offset=0, dtype=mx.float32)
    assert seen(bias) == [[[[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]]]


def test_a_given_mask_overrides_packed_positions() -> None:
    mask = mx.ones((1, 4), mx.int32)
    bias = attention_bias(mask, mx.array([[0, 1, 0, 1]]), length=4, offset=0, dtype=mx.float32)
    assert seen(bias)[0][0][3] == [1, 1, 1, 1]  # pyright: ignore[reportIndexIssue]


@pytest.mark.parametrize("total", [3, 5])
def test_causal_is_spelled_out_from_the_end(total: int) -> None:
    bias = explicit_mask("causal", 3, total, mx.float32)
    assert seen(bias) == [[1] * (total - 2 + i) + [0] * (2 - i) for i in range(3)]


def test_explicit_masks_are_left_alone() -> None:
    bias = mx.zeros((1, 1, 2, 2))
    assert explicit_mask(bias, 2, 2, mx.float32) is bias
    assert explicit_mask(None, 1, 9, mx.float32) is None


def test_a_mask_of_ones_is_no_mask(model: HeliumForCausalLM) -> None:
    assert relative_error(model(IDS, mx.ones((2, 12), mx.int32)).logits, model(IDS).logits) < 1e-6


def test_what_padding_holds_does_not_matter(model: HeliumForCausalLM) -> None:
    for padding in (slice(0, 4), slice(8, 12)):
        mask, changed = mx.ones((2, 12), mx.int32), mx.array(IDS)
        mask[1, padding], changed[1, padding] = 0, 77
        before, after = model(IDS, mask).logits, model(changed, mask).logits
        kept = [i for i in range(12) if i not in range(*padding.indices(12))]
        assert relative_error(after[1, mx.array(kept)], before[1, mx.array(kept)]) < 1e-6
        assert relative_error(after[0], before[0]) < 1e-6


def test_a_left_padded_row_with_its_positions_is_the_row_alone(model: HeliumForCausalLM) -> None:
    ids = mx.array([[3, 3, 3, *IDS[1, :9].tolist()]])  # pyright: ignore[reportGeneralTypeIssues]
    mask = (mx.arange(12) >= 3).astype(mx.int32)[None]
    positions = mx.maximum(mx.arange(12) - 3, 0)[None]
    assert relative_error(model(ids, mask, positions).logits[:, 3:], model(IDS[1:, :9]).logits) < 1e-5


def test_packed_rows_are_their_sequences_alone(model: HeliumForCausalLM) -> None:
    packed = mx.concatenate([IDS[:1, :7], IDS[1:, :5]], axis=1)
    positions = mx.array([[*range(7), *range(5)]])
    logits = model(packed, position_ids=positions, use_cache=False).logits
    assert relative_error(logits[:, :7], model(IDS[:1, :7]).logits) < 1e-5
    assert relative_error(logits[:, 7:], model(IDS[1:, :5]).logits) < 1e-5


def test_with_a_cache_packed_positions_are_not_looked_for(model: HeliumForCausalLM) -> None:
    positions = mx.array([[*range(7), *range(5)]] * 2)
    uncached = model(IDS, position_ids=positions, use_cache=False).logits
    assert relative_error(model(IDS, position_ids=positions).logits[:, 7:], uncached[:, 7:]) > 0.01


@pytest.mark.parametrize("shape", [(2, 1), (1, 1), (2, 4), (1, 4)])
def test_boolean_and_additive_masks_agree(model: HeliumForCausalLM, shape: tuple[int, int]) -> None:
    rows, heads = mx.arange(shape[0])[:, None, None, None], mx.arange(shape[1])[:, None, None]
    queries, keys = mx.arange(12)[:, None], mx.arange(12)
    allowed = (queries >= keys) & (((keys + heads + rows) % 3 != 0) | (queries == keys))
    additive = mx.where(allowed, 0.0, -1e30)
    assert relative_error(model(IDS, additive).logits, model(IDS, allowed).logits) < 1e-6
    assert relative_error(model(IDS, allowed).logits, model(IDS).logits) > 0.01


def test_a_4d_mask_need_not_be_causal(model: HeliumForCausalLM) -> None:
    everything = mx.ones((1, 1, 12, 12), mx.bool_)
    changed = mx.array(IDS)
    changed[:, -1] = 50
    moved = model(changed, everything).logits[:, 0] - model(IDS, everything).logits[:, 0]
    assert mx.abs(moved).max().item() > 0.01  # pyright: ignore[reportOperatorIssue]


@pytest.mark.parametrize("kind", ["none", "padding", "boolean"])
def test_attentions_are_what_attention_used(model: HeliumForCausalLM, kind: str) -> None:
    padding = (mx.arange(12) >= mx.array([[0], [3]])).astype(mx.int32)
    boolean = mx.tril(mx.ones((12, 12), mx.bool_))[None, None] & (
        (mx.arange(12) % 4 != 1) | mx.eye(12).astype(mx.bool_)
    )
    mask = {"none": None, "padding": padding, "boolean": boolean}[kind]
    output, plain = model(IDS, mask, output_attentions=True), model(IDS, mask)
    real = mx.ones((2, 12)) if kind != "padding" else padding
    kept = real.astype(mx.bool_)[..., None]
    assert relative_error(mx.where(kept, output.logits, 0), mx.where(kept, plain.logits, 0)) < 1e-5
    assert plain.attentions is None
    assert output.attentions is not None
    assert len(output.attentions) == model.config.num_hidden_layers
    for weights in output.attentions:
        assert weights.shape == (2, 4, 12, 12)
        assert mx.allclose(weights.sum(axis=-1), mx.ones((2, 4, 12)), atol=1e-5)
        unseen = attention_bias(mask, None, length=12, offset=0, dtype=mx.float32)
        unseen = explicit_mask("causal" if unseen is None else unseen, 12, 12, mx.float32)
        assert unseen is not None
        assert mx.where(kept[:, None] & (unseen < 0), weights, 0).max().item() == 0


def test_attentions_behind_a_cache_cover_it(model: HeliumForCausalLM) -> None:
    cache = make_cache(model)
    model(IDS[:, :7], past_key_values=cache)
    output, whole = model(IDS[:, 7:], past_key_values=cache, output_attentions=True), model(IDS, output_attentions=True)
    assert output.attentions is not None
    assert whole.attentions is not None
    for part, all_of_it in zip(output.attentions, whole.attentions, strict=True):
        assert part.shape == (2, 4, 5, 12)
        assert relative_error(part, all_of_it[:, :, 7:]) < 1e-5
    assert relative_error(output.logits, whole.logits[:, 7:]) < 1e-5


def test_the_last_query_of_a_causal_mask_sees_everything() -> None:
    mask = mx.arange(12).reshape(1, 1, 3, 4)
    assert mask_of_last_query("causal") is mask_of_last_query(None) is None
    assert mask_of_last_query(mask).tolist() == [[[[8, 9, 10, 11]]]]  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]


# --- large weights


def heavy_model(dtype: mx.Dtype) -> HeliumForCausalLM:
    """Return a model whose attention scores are in the hundreds, and those of tokens with themselves below 0."""
    values = config_values(num_attention_heads=2, num_key_value_heads=2, head_dim=32, num_hidden_layers=3)
    model = HeliumForCausalLM(HeliumConfig.from_dict(values))
    mx.random.seed(2)
    for name, x in model.tensors().items():
        drawn = x if x.ndim < 2 else mx.random.normal(x.shape) * 0.6
        if name.endswith("qkv_proj.weight"):
            queries, _, v = mx.split(drawn, 3)
            drawn = mx.concatenate([queries, -queries, v])
        model.update(tree_unflatten([(name, drawn.astype(dtype))]))
    return model


def mask_forms(padding: mx.array, dtype: mx.Dtype) -> dict[str, mx.array]:
    """Return a mask (B, L) as all that transformers takes: 2-D, boolean, and added with the dtype's smallest number."""
    allowed = mx.tril(mx.ones((padding.shape[1], padding.shape[1]), mx.bool_)) & (padding != 0)[:, None, None, :]
    smallest = mx.array(mx.finfo(dtype).min, dtype)
    added = mx.where(allowed, mx.array(0, dtype), smallest)
    return {"2-D": padding, "boolean": allowed, "added": added, "added, float32": added.astype(mx.float32)}


@pytest.mark.parametrize("form", ["2-D", "boolean", "added", "added, float32"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["no cache", "cache", "attentions", "quantized", "rotating"])
def test_padding_on_the_left_changes_nothing_however_large_the_scores(dtype: mx.Dtype, form: str, kind: str) -> None:
    kinds: dict[str, dict[str, int]] = {
        "cache": {},
        "quantized": {"kv_bits": 8, "kv_group_size": 32},
        "rotating": {"max_kv_size": 8},
    }
    model, left = heavy_model(dtype), 10
    ids = mx.concatenate([mx.concatenate([mx.full((1, left), 3), IDS[:1, :2]], axis=1), IDS[1:]])
    padding = (mx.arange(12) >= mx.array([[left], [0]])).astype(mx.int32)
    positions = mx.maximum(mx.arange(12) - mx.array([[left], [0]]), 0)
    caches = [make_cache(model, **kinds[kind]) if kind in kinds else None for _ in range(2)]
    attentions, cached = kind == "attentions", kind in kinds
    alone, padded = (
        model(*inputs, past_key_values=cache, use_cache=cached, output_attentions=attentions).logits
        for inputs, cache in zip(
            [(IDS[:1, :2],), (ids, mask_forms(padding, dtype)[form], positions)], caches, strict=True
        )
    )
    assert mx.isfinite(padded[0, left:]).all().item()
    assert mx.isfinite(padded[1]).all().item()
    assert relative_error(padded[:1, left:], alone) < {mx.float32: 1e-4, mx.float16: 0.02}.get(dtype, 0.1)
