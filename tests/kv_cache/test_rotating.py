"""The rotating cache next to explicit attention over all keys, masked to the first tokens and the window."""

import random

import mlx.core as mx
import pytest
from measures import relative_error
from tiny_checkpoints import CaseLoader

from helium_mlx.errors import GenerationError
from helium_mlx.kv_cache.cache import KVCache
from helium_mlx.kv_cache.make import make_cache
from helium_mlx.kv_cache.rotating import SPARE, RotatingKVCache
from helium_mlx.model.helium import HeliumForCausalLM

CASES = ("helium-mha", "helium-gqa-bias", "llama-mqa-tied")
TOLERANCE = 1e-5


def window(length: int, max_size: int, keep: int) -> mx.array:
    rows = [[k <= q and (k < keep or k > q - (max_size - keep)) for k in range(length)] for q in range(length)]
    return mx.array(rows)[None, None]


def ids_of(model: HeliumForCausalLM, length: int, seed: int = 0, rows: int = 1) -> mx.array:
    return mx.random.randint(0, model.config.vocab_size, (rows, length), key=mx.random.key(seed)).astype(mx.int32)


def reference(model: HeliumForCausalLM, ids: mx.array, max_size: int, keep: int = 1) -> mx.array:
    logits = model(ids, attention_mask=window(ids.shape[1], max_size, keep), use_cache=False).logits
    assert logits is not None
    return logits


def rotating(model: HeliumForCausalLM, max_size: int, keep: int = 1) -> list[KVCache]:
    return [RotatingKVCache(max_size, keep) for _ in range(model.config.num_hidden_layers)]


def run(model: HeliumForCausalLM, ids: mx.array, cache: list[KVCache]) -> mx.array:
    logits = model(ids, past_key_values=cache).logits
    assert logits is not None
    mx.eval(logits)
    return logits


def in_chunks(model: HeliumForCausalLM, ids: mx.array, cache: list[KVCache], lengths: list[int]) -> mx.array:
    logits, start = [], 0
    for length in lengths:
        logits.append(run(model, ids[:, start : start + length], cache))
        start += length
    assert start == ids.shape[1]
    return mx.concatenate(logits, axis=1)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("max_size", "keep"), [(2, 1), (9, 1), (16, 4), (5, 0)])
def test_chunks_of_any_length_give_the_windowed_attention(
    load_case: CaseLoader, case: str, max_size: int, keep: int
) -> None:
    model, total = load_case(case), 90
    ids = ids_of(model, total)
    expected = reference(model, ids, max_size, keep)
    for lengths in ([90], [1] * 90, [34, 1, 20, 33, 2], [3, 35, 52], [60, *[1] * 10, 20]):
        logits = in_chunks(model, ids, rotating(model, max_size, keep), lengths)
        assert relative_error(logits, expected) < TOLERANCE, lengths


def test_tokens_out_of_the_window_change_nothing_and_the_first_does(load_case: CaseLoader) -> None:
    model = load_case("helium-gqa-bias")
    ids = ids_of(model, 60)

    def last(changed: int | None) -> mx.array:
        values = (
            ids if changed is None else mx.where(mx.arange(60) == changed, (ids + 1) % model.config.vocab_size, ids)
        )
        # One layer is needed for "changes nothing": through the layers a window sees further.
        layer = model.model.layers[0].self_attn
        embedded = model.model.embed(values)
        cache = RotatingKVCache(9)
        rope = model.model._rope
        layer(embedded[:, :40], cache.mask(40), rope.at(0, 40), cache)
        out, _ = layer(embedded[:, 40:], cache.mask(20), rope.at(40, 20), cache)
        return out[:, -1]

    unchanged = last(None)
    for position, matters in ((0, True), (1, False), (30, False), (51, False), (52, True), (58, True)):
        assert bool((last(position) != unchanged).any().item()) is matters, position


@pytest.mark.parametrize("seed", range(5))
def test_any_course_of_calls_and_trims_is_as_if_the_rest_had_never_come(load_case: CaseLoader, seed: int) -> None:
    rng, model = random.Random(seed), load_case("helium-gqa-bias")
    max_size, keep = rng.choice([(3, 1), (8, 1), (20, 2), (40, 1)])
    cache, held = rotating(model, max_size, keep), list[int]()
    for step in range(16):
        new = ids_of(model, rng.choice((1, 1, 1, 2, 7, SPARE + 1, SPARE + 2, 60)), seed=seed * 100 + step)
        logits = run(model, new, cache)
        held += new[0].tolist()  # pyright: ignore[reportOperatorIssue, reportArgumentType]
        expected = reference(model, mx.array([held]), max_size, keep)[:, -new.shape[1] :]
        assert relative_error(logits, expected) < TOLERANCE, step
        possible = cache[0].trimmable
        assert possible >= min(SPARE + 1, len(held)) or step
        count = rng.choice((0, 0, 1, rng.randint(0, possible), possible))
        for layer in cache:
            assert layer.trim(count) == count
        held = held[: len(held) - count]
        assert cache[0].offset == len(held)
        if len(held) > 250:
            break


def test_a_step_in_flight_can_always_be_taken_back(load_case: CaseLoader) -> None:
    model = load_case("helium-mha")
    ids = ids_of(model, 90)
    cache, taken_back = rotating(model, 10), rotating(model, 10)
    for i in range(90):
        run(model, ids[:, i : i + 1], cache)
        run(model, ids[:, i : i + 1], taken_back)
        run(model, ids_of(model, 1, seed=i), taken_back)
        for layer in taken_back:
            layer.trim(1)
    expected = run(model, ids[:, :1], cache)
    assert relative_error(run(model, ids[:, :1], taken_back), expected) < TOLERANCE


def test_what_was_dropped_cannot_be_gone_back_to(load_case: CaseLoader) -> None:
    model = load_case("helium-mha")
    cache = rotating(model, 10)
    run(model, ids_of(model, 42), cache)
    assert cache[0].is_trimmable
    run(model, ids_of(model, 1), cache)
    assert not cache[0].is_trimmable
    assert cache[0].trimmable == SPARE + 1
    with pytest.raises(GenerationError, match="a cache of 10 tokens that has seen 43 can forget the last 33, not 34"):
        cache[0].trim(SPARE + 2)
    assert cache[0].offset == 43


def test_memory_stops_at_the_size(load_case: CaseLoader) -> None:
    model = load_case("helium-mha")
    for lengths in ([1] * 150, [40, 60, 50], [150]):
        cache = rotating(model, 16)
        for length in lengths:
            run(model, ids_of(model, length), cache)
        assert cache[0].offset == 150
        assert {part.shape[2] for part in cache[0].state} == {16 + SPARE}
        assert cache[0].slots == 16 + SPARE


def test_decoding_writes_in_place() -> None:
    cache = RotatingKVCache(100_000)
    big = mx.zeros((1, 2, 100_100, 32))
    cache.update_and_fetch(big, big)
    mx.eval(cache.state)
    del big
    held = cache.nbytes
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    for _ in range(3):
        keys, values = cache.update_and_fetch(mx.ones((1, 2, 1, 32)), mx.ones((1, 2, 1, 32)))
        mx.eval(cache.state)
        del keys, values
    assert mx.get_peak_memory() - before < held / 10


@pytest.mark.parametrize("kind", ["padding", "boolean", "additive"])
def test_masks_of_the_callers_are_restricted_to_what_is_held(load_case: CaseLoader, kind: str) -> None:
    model, max_size, total = load_case("helium-gqa-bias"), 12, 80
    ids = ids_of(model, total, rows=2)
    padding = mx.array([[1] * total, [1, 0, 0, 1, 0] * (total // 5)])
    both = window(total, max_size, 1) & (padding != 0)[:, None, None, :]
    expected = model(ids, attention_mask=both, use_cache=False).logits
    assert expected is not None
    cache, start = rotating(model, max_size), 0
    for length in (20, 1, 5, 40, 1, 1, 12):
        end = start + length
        if kind == "padding":
            mask = padding[:, :end]
        else:
            causal = mx.arange(start, end)[:, None] >= mx.arange(end)
            mask = causal & (padding[:, :end] != 0)[:, None, None, :]
            mask = mask if kind == "boolean" else mx.where(mask, 0.0, -1e30)
        logits = model(ids[:, start:end], attention_mask=mask, past_key_values=cache).logits
        assert logits is not None
        # A padded query may see nothing at all; what it makes of that is nobody's business.
        wanted = padding[:, start:end, None]
        assert relative_error(logits * wanted, expected[:, start:end] * wanted) < TOLERANCE
        start = end


def test_attention_weights_are_those_of_what_is_held(load_case: CaseLoader) -> None:
    model = load_case("helium-gqa-bias")
    ids = ids_of(model, 80)
    cache = rotating(model, 12)
    expected = reference(model, ids, 12)
    for start, end in ((0, 60), (60, 61), (61, 80)):
        output = model(ids[:, start:end], past_key_values=cache, output_attentions=True)
        assert output.logits is not None
        assert output.attentions is not None
        assert relative_error(output.logits, expected[:, start:end]) < TOLERANCE
        weights = output.attentions[0]
        assert weights is not None
        assert mx.allclose(weights.sum(axis=-1), mx.ones(weights.shape[:-1]), atol=1e-5).item()
        # The first token and the window: never more than 12.
        assert mx.max((weights > 0).sum(axis=-1)).item() <= 12  # pyright: ignore[reportOperatorIssue]


def test_generation_steps_see_what_the_forward_pass_sees(load_case: CaseLoader) -> None:
    model = load_case("llama-mqa-tied")
    ids, cache = ids_of(model, 100), rotating(model, 10)
    expected = reference(model, ids, 10)
    for start, end in ((0, 45), (45, 50), (50, 90), *((i, i + 1) for i in range(90, 100))):
        logits = model.next_logits(ids[:, start:end], cache)
        assert relative_error(logits, expected[:, end - 1]) < TOLERANCE


def test_rows_of_a_batch_are_as_alone(load_case: CaseLoader) -> None:
    model = load_case("helium-gqa-bias")
    ids = ids_of(model, 70, rows=3)
    together = in_chunks(model, ids, rotating(model, 9), [40, *[1] * 30])
    for row in range(3):
        alone = in_chunks(model, ids[row : row + 1], rotating(model, 9), [40, *[1] * 30])
        assert relative_error(together[row : row + 1], alone) < TOLERANCE


def test_a_size_above_the_context_is_allowed_and_takes_no_more_memory(load_case: CaseLoader) -> None:
    model = load_case("helium-mha")
    ids = ids_of(model, 30)
    large, plain = make_cache(model, max_kv_size=1_000_000), make_cache(model)
    assert mx.array_equal(run(model, ids, large), run(model, ids, plain)).item()
    assert large[0].nbytes == plain[0].nbytes


@pytest.mark.parametrize("size", [1, 0, -5, True, 2.5, "8"])
def test_a_size_without_room_is_refused(load_case: CaseLoader, size: int) -> None:
    with pytest.raises(GenerationError, match=r"max_kv_size is .*; it must be a whole number from 2 to"):
        make_cache(load_case("helium-mha"), max_kv_size=size)
