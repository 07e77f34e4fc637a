"""The arithmetic of the cap, and MLX's limits set and restored."""

import mlx.core as mx
import pytest

from helium_mlx import EngineMemoryError, HeliumEngine, backend
from helium_mlx.engine import memory as engine_memory
from helium_mlx.engine.memory import MemoryBudget, ProcessLimits, prefix_bytes
from helium_mlx.memory_limits import SharedLimit


def test_rows_that_decode_together_take_the_longest_of_them_each() -> None:
    budget = MemoryBudget(None, 0, 10)
    assert budget.batch_bytes([]) == 0
    assert budget.batch_bytes([7]) == 70
    assert budget.batch_bytes([7, 2, 3]) == 210
    assert budget.batch_bytes([7, 2, 3], [2, 1]) == 240
    assert budget.batch_bytes([7], [2]) == 70


def test_the_limit_is_on_weights_plus_caches() -> None:
    budget = MemoryBudget(100, 60, 10)
    assert budget.allows(40)
    assert not budget.allows(41)
    assert MemoryBudget(None, 60, 10).allows(10**15)
    budget.require(40, 4)
    with pytest.raises(EngineMemoryError, match=r"41 bytes of cache for its 4 tokens.*weights of 60: over.* 100;"):
        budget.require(41, 4)
    with pytest.raises(EngineMemoryError, match="the weights take 101 bytes, and memory_limit is 100;"):
        MemoryBudget(100, 101, 10).require_weights()


def test_prefixes_have_a_quarter_of_what_the_weights_leave_and_a_gigabyte_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert MemoryBudget(100, 60, 10).left_beside(15) == 25
    assert MemoryBudget(None, 60, 10).left_beside(15) is None
    assert prefix_bytes(60, 100) == 10
    assert prefix_bytes(60, 10**12) == 2**30
    for device, expected in ((1060, 250), (50, 0), (10**12, 2**30), (None, 2**30)):
        monkeypatch.setattr(engine_memory, "working_set_bytes", lambda device=device: device)
        assert prefix_bytes(60, None) == expected


def test_a_shared_limit_is_the_largest_asked_for_and_then_what_it_was() -> None:
    now = [50]

    def set_limit(limit: int) -> int:
        before, now[0] = now[0], limit
        return before

    shared = SharedLimit(set_limit)
    shared.claim(1, 10)
    assert now == [10]
    shared.claim(2, 30)
    assert now == [30]
    shared.release(1)
    assert now == [30]
    shared.claim(1, 20)
    shared.release(2)
    assert now == [20]
    shared.release(1)
    assert now == [50]
    shared.release(1)
    assert now == [50]


def test_a_limit_that_cannot_be_set_is_nobodys() -> None:
    now = [50]

    def set_limit(limit: int) -> int:
        if limit > 100:
            raise TypeError("too large")
        before, now[0] = now[0], limit
        return before

    shared = SharedLimit(set_limit)
    with pytest.raises(TypeError, match="too large"):
        shared.claim(1, 101)
    shared.release(1)
    assert now == [50]
    shared.claim(2, 30)
    with pytest.raises(TypeError, match="too large"):
        shared.claim(1, 101)
    assert now == [30]
    shared.release(2)
    assert now == [50]


def cache_limit() -> int:
    limit = mx.set_cache_limit(0)
    mx.set_cache_limit(limit)
    return limit


def test_mlx_keeps_fewer_free_buffers_while_an_engine_is_open() -> None:
    before = cache_limit()
    with HeliumEngine("demo", cache_limit=12_345_678) as engine:
        assert cache_limit() == 12_345_678
        engine.pause()
        assert cache_limit() == before
        engine.resume()
        assert cache_limit() == 12_345_678
    assert cache_limit() == before
    assert before != 12_345_678


@pytest.mark.parametrize(("memory_limit", "wired"), [(None, 9000), (700, 700), (10_000, 9000)])
def test_memory_is_wired_on_metal_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch, memory_limit: int | None, wired: int
) -> None:
    said: list[int] = []
    monkeypatch.setattr(engine_memory, "WIRED_LIMIT", SharedLimit(lambda limit: (said.append(limit), 5)[1]))
    monkeypatch.setattr(backend, "wireable_bytes", lambda: 9000)
    limits = ProcessLimits(2**28, memory_limit)
    limits.set()
    assert said == [wired]
    limits.restore()
    assert said == [wired, 5]
    monkeypatch.setattr(backend, "wireable_bytes", lambda: None)
    limits.set()
    limits.restore()
    assert said == [wired, 5]
