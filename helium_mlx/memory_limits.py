"""MLX's limits on memory, which belong to the process: asked for by several, and set back when the last has gone."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import mlx.core as mx

from helium_mlx import backend


class SharedLimit:
    """One of MLX's limits, which belong to the process: the largest that anybody asks for, then what it was."""

    def __init__(self, set_limit: Callable[[int], int]) -> None:
        self._set = set_limit
        self._lock = threading.Lock()
        self._claims: dict[int, int] = {}
        self._before = 0

    def claim(self, owner: int, limit: int) -> None:
        """Ask for at least `limit` bytes, until released."""
        with self._lock:
            replaced = self._set(max([limit, *(claim for other, claim in self._claims.items() if other != owner)]))
            if not self._claims:
                self._before = replaced
            self._claims[owner] = limit

    def release(self, owner: int) -> None:
        """Take back what was asked for, if anything was."""
        with self._lock:
            if self._claims.pop(owner, None) is not None:
                self._set(max(self._claims.values()) if self._claims else self._before)


CACHE_LIMIT = SharedLimit(lambda limit: mx.set_cache_limit(limit))
WIRED_LIMIT = SharedLimit(lambda limit: mx.set_wired_limit(limit))


@contextmanager
def wired_memory() -> Iterator[None]:
    """Keep what MLX holds resident for the GPU, on Metal, up to what it recommends.

    A model near that size is else taken out of memory between two steps, and decodes at a tenth of its speed.
    """
    limit, owner = backend.wireable_bytes(), object()
    if limit is not None:
        WIRED_LIMIT.claim(id(owner), limit)
    try:
        yield
    finally:
        WIRED_LIMIT.release(id(owner))
