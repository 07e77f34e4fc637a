from pathlib import Path

import mlx.core as mx
import pytest
from measures import relative_error
from tiny_checkpoints import CASES, CaseLoader, write_checkpoint

from helium_mlx.checkpoint.config import HeliumConfig
from helium_mlx.errors import ArgumentError
from helium_mlx.kv_cache.make import make_cache
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.model.loading import load_model
from helium_mlx.model.rope import RotaryEmbedding

PROMPT = mx.array([[1, *(7 + 13 * i % 89 for i in range(39))]])


@pytest.mark.parametrize("name", CASES)
def test_a_token_does_not_change_what_comes_before_it(load_case: CaseLoader, name: str) -> None:
    model, changed = load_case(name), mx.array(PROMPT)
    changed[0, 20] = 5
    before, after = model(PROMPT).logits, model(changed).logits
    assert mx.array_equal(before[:, :20], after[:, :20])
    assert not mx.array_equal(before[:, 20:], after[:, 20:])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("steps", [[1] * 40, [39, 1], [16, 16, 8], [1, 39]])
def test_cached_in_any_steps_equals_whole(load_case: CaseLoader, name: str, steps: list[int]) -> None:
    model = load_case(name)
    cache, start, parts = make_cache(model), 0, []
    for length in steps:
        parts.append(model(PROMPT[:, start : start + length], past_key_values=cache).logits)
        start += length
    assert relative_error(mx.concatenate(parts, axis=1), model(PROMPT).logits) < 1e-5


def test_rows_of_a_batch_do_not_see_each_other(load_case: CaseLoader) -> None:
    model = load_case("helium-gqa-bias")
    rows = mx.concatenate([PROMPT, mx.flip(PROMPT, 1)])
    both = model(rows).logits
    assert relative_error(both[:1], model(rows[:1]).logits) < 1e-5
    assert relative_error(both[1:], model(rows[1:]).logits) < 1e-5


def test_logits_to_keep_counts_from_the_end(load_case: CaseLoader) -> None:
    model = load_case("helium-mha")
    whole = model(PROMPT).logits
    assert whole.shape == (1, 40, 96)
    for keep in (1, 3):
        kept = model(PROMPT, logits_to_keep=keep).logits
        assert kept.shape == (1, keep, 96)
        assert relative_error(kept, whole[:, -keep:]) < 1e-5


def test_hidden_states_end_with_the_normed_one(load_case: CaseLoader) -> None:
    model = load_case("helium-mha")
    output = model.model(PROMPT, output_hidden_states=True)
    assert output.hidden_states is not None
    assert len(output.hidden_states) == model.config.num_hidden_layers + 1
    assert mx.array_equal(output.hidden_states[-1], output.last_hidden_state)
    assert model.model(PROMPT).hidden_states is None


@pytest.mark.parametrize("name", ["helium-mha", "llama-mha"])
def test_the_other_rope_pairing_moves_the_logits_far(load_case: CaseLoader, name: str) -> None:
    model = load_case(name)
    right, rope = model(PROMPT).logits, model.model._rope
    rope.interleaved = not rope.interleaved
    try:
        assert relative_error(model(PROMPT).logits, right) > 0.1
    finally:
        rope.interleaved = not rope.interleaved


def test_rope_kernel_and_rope_table_agree(load_case: CaseLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("helium-mha", "llama-gqa-bias"):
        model = load_case(name)
        by_table = model(PROMPT).logits
        monkeypatch.setattr("helium_mlx.backend.has_fused_kernels", lambda: True)
        by_kernel = model(PROMPT).logits
        monkeypatch.undo()
        assert relative_error(by_kernel, by_table) < 1e-5


def test_gating_compiled_and_not_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    from helium_mlx import backend
    from helium_mlx.model import helium as model

    gate, up = mx.random.normal((2, 2, 8))
    plain = model._gating("silu")(gate, up)
    monkeypatch.setattr(backend, "fuse", lambda function: mx.compile(function, shapeless=True))
    assert relative_error(model._gating.__wrapped__("silu")(gate, up), plain) < 1e-6


def test_queries_and_keys_are_rotated_in_one_call(load_case: CaseLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    model, shapes = load_case("helium-gqa-bias"), []
    original = RotaryEmbedding.at

    def counting(self: RotaryEmbedding, offset: int, length: int, **options: bool) -> object:
        rotate = original(self, offset, length, **options)
        return lambda x: shapes.append(x.shape) or rotate(x)

    monkeypatch.setattr(RotaryEmbedding, "at", counting)
    model(PROMPT)
    assert shapes == [(1, 4 + 2, 40, 16)] * model.config.num_hidden_layers


def test_a_new_model_has_weights_of_the_configured_deviation() -> None:
    config = HeliumConfig(64, 64, 64, 2, 2, initializer_range=0.5, head_dim=32)
    model = HeliumForCausalLM(config)
    assert mx.std(model.lm_head["weight"]).item() == pytest.approx(0.5, rel=0.1)
    assert mx.std(model.model.layers[0].self_attn.qkv_proj.weight).item() == pytest.approx(0.5, rel=0.1)  # pyright: ignore


def test_a_cache_of_another_model_is_refused(load_case: CaseLoader) -> None:
    model = load_case("helium-mha")
    with pytest.raises(ArgumentError, match="make_cache"):
        model(PROMPT, past_key_values=make_cache(model)[:-1])


def test_the_last_layer_computes_the_last_position_only_where_no_other_is_wanted(load_case: CaseLoader) -> None:
    model = load_case("helium-gqa-bias")
    rows, layer = [], model.model.layers[-1]
    original = layer.mlp
    setattr(layer, "mlp", lambda x, residual: (rows.append(x.shape[1]), original(x, residual))[1])  # noqa: B010
    try:
        cache = make_cache(model)
        logits = model.next_logits(PROMPT, cache)
    finally:
        layer.mlp = original
    assert rows == [1]
    assert relative_error(logits, model(PROMPT).logits[:, -1]) < 1e-5
    assert cache[-1].offset == PROMPT.shape[1]
    following = model(PROMPT[:, :1], past_key_values=cache).logits
    whole = model(mx.concatenate([PROMPT, PROMPT[:, :1]], axis=1)).logits[:, -1:]
    assert relative_error(following, whole) < 1e-5


def test_scores_behind_attentions_do_not_overflow_in_float16(tmp_path: Path) -> None:
    model = load_model(write_checkpoint(tmp_path), dtype="float16")
    attention = model.model.layers[0].self_attn
    queries, keys, values = mx.random.normal((3, 1, 4, 24, 16), key=mx.random.key(0)).astype(mx.float16)
    output, weights = attention._attend_step_by_step(200 * queries, 200 * keys, values, "causal")
    assert weights.dtype == output.dtype == mx.float16
    expected = mx.fast.scaled_dot_product_attention(
        200 * queries.astype(mx.float32), 200 * keys.astype(mx.float32), values.astype(mx.float32),
        scale=attention.scale, mask="causal",
    )  # fmt: skip
    assert relative_error(output, expected) < 2e-3


def test_the_softmax_behind_attentions_is_float32(tmp_path: Path) -> None:
    model = load_model(write_checkpoint(tmp_path), dtype="bfloat16")
    attention = model.model.layers[0].self_attn
    queries, keys, values = mx.random.normal((3, 1, 4, 24, 16), key=mx.random.key(0)).astype(mx.bfloat16)
    _, weights = attention._attend_step_by_step(queries, keys, values, None)
    scores = ((queries @ keys.swapaxes(-1, -2)) * attention.scale).astype(mx.float32)
    assert mx.array_equal(weights, mx.softmax(scores, axis=-1).astype(mx.bfloat16))
