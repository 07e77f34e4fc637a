import mlx.core as mx
import pytest

from helium_mlx.kv_cache.batch import BatchKVCache
from helium_mlx.kv_cache.cache import KVCache, QuantizedKVCache
from helium_mlx.kv_cache.rotating import RotatingKVCache


def token(value: float, length: int = 1) -> mx.array:
    return mx.full((1, 2, length, 4), value)


def test_returns_all_that_was_put_in() -> None:
    cache = KVCache()
    for i in range(599):
        cache.update_and_fetch(token(i), token(-i))
    keys, values = cache.update_and_fetch(token(599), token(-599))
    assert keys.shape == values.shape == (1, 2, 600, 4)
    assert keys[0, 0, :, 0].tolist() == list(range(600))
    assert values[0, 1, :, 3].tolist() == [-i for i in range(600)]


def test_growing_copies_little() -> None:
    cache, copied, capacity = KVCache(), 0, 0
    for i in range(4096):
        cache.update_and_fetch(token(i), token(i))
        held = cache.state[0].shape[2]
        if held != capacity:
            copied, capacity = copied + i, held
        if i % 64 == 0:
            mx.eval(cache.state)
    assert copied < 4.5 * 4096
    assert capacity <= 1.25 * 4096


def test_memory_stops_at_what_is_reserved() -> None:
    cache = KVCache()
    cache.reserve(300)
    cache.update_and_fetch(token(0, 290), token(0, 290))
    cache.update_and_fetch(token(0, 10), token(0, 10))
    assert cache.state[0].shape[2] == 300
    cache.update_and_fetch(token(0), token(0))
    assert cache.offset == 301


def test_trimmed_tokens_are_overwritten() -> None:
    cache = KVCache()
    cache.update_and_fetch(token(1, 5), token(1, 5))
    assert cache.trim(2) == 2
    keys, _ = cache.update_and_fetch(token(2), token(2))
    assert keys[0, 0, :, 0].tolist() == [1, 1, 1, 2]
    assert cache.trim(100) == 4


def test_a_copy_and_its_original_are_written_to_apart() -> None:
    cache = KVCache()
    cache.update_and_fetch(token(1, 5), token(1, 5))
    other = cache.copy()
    other.trim(2)
    ours, _ = cache.update_and_fetch(token(2), token(2))
    theirs, _ = other.update_and_fetch(token(3), token(3))
    assert ours[0, 0, :, 0].tolist() == [1, 1, 1, 1, 1, 2]
    assert theirs[0, 0, :, 0].tolist() == [1, 1, 1, 3]
    assert cache.empty().state == []


def test_nothing_is_evaluated() -> None:
    cache, big = KVCache(), mx.zeros((1, 2, 200_000, 4))
    before = mx.get_active_memory()
    cache.update_and_fetch(big, big)
    cache.update_and_fetch(token(1), token(1))
    assert mx.get_active_memory() - before < big.nbytes


def test_nbytes_counts_what_is_held() -> None:
    cache = KVCache()
    assert cache.nbytes == 0
    cache.update_and_fetch(token(0), token(0))
    assert cache.nbytes == 2 * 2 * 256 * 4 * 4


@pytest.mark.parametrize(
    ("cache", "names"),
    [
        (KVCache(), ("max_size", "keep", "bits", "group_size", "step", "dtype", "nbytes", "batch_size", "foo")),
        (QuantizedKVCache(4, 32), ("bits", "group_size", "kind", "dtype", "max_size", "foo")),
        (RotatingKVCache(8, 1), ("max_size", "keep", "max_slots", "bits", "dtype", "foo")),
        (BatchKVCache([2, 0]), ("padding", "lengths", "max_size", "dtype", "foo")),
    ],
)
def test_what_changes_nothing_cannot_be_set(cache: KVCache, names: tuple[str, ...]) -> None:
    for name in names:
        with pytest.raises(AttributeError, match=name):
            setattr(cache, name, 3)
