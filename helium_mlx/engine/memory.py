"""What an engine does about memory: its cap on weights plus caches, and MLX's own limits, set and restored.

The cap is arithmetic, done before anything is allocated: rows that decode together take the length of the longest each
(`kv_cache/batch.py`), a prompt that has not joined yet is held a second time while it is copied in. Prefixes that are
kept (`prefix_tree.py`) have what is left. What a forward pass needs beside them is not counted, nor are MLX's free
buffers, which have a limit of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from helium_mlx import backend
from helium_mlx.errors import EngineMemoryError
from helium_mlx.kv_cache.memory import working_set_bytes
from helium_mlx.memory_limits import CACHE_LIMIT, WIRED_LIMIT

# Some 4,000 tokens of Helium 1 with 2 billion parameters.
MOST_PREFIXES = 2**30


@dataclass(frozen=True)
class MemoryBudget:
    """`limit` bytes for weights plus caches, or None; what the weights take, and a token in a batch's caches."""

    limit: int | None
    weights: int
    bytes_per_token: int

    def batch_bytes(self, spans: Sequence[int], joining: Sequence[int] = ()) -> int:
        """Return what caches of rows of these final lengths take, those of prompts that are to join beside them.

        A row that is alone joins nobody, and its prompt's cache is the batch's.
        """
        together = len(spans) * max(spans, default=0)
        return self.bytes_per_token * (together + (sum(joining) if len(spans) > 1 else 0))

    def left_beside(self, cache_bytes: int) -> int | None:
        """Return how many bytes are left beside weights and caches of so many; None without a limit."""
        return None if self.limit is None else self.limit - self.weights - cache_bytes

    def allows(self, cache_bytes: int) -> bool:
        """Return whether caches of so many bytes fit beside the weights."""
        left = self.left_beside(cache_bytes)
        return left is None or left >= 0

    def require_weights(self) -> None:
        """Raise EngineMemoryError if the weights alone are over the limit."""
        if not self.allows(0):
            raise EngineMemoryError(
                f"the weights take {self.weights:,} bytes, and memory_limit is {self.limit:,}; raise it, or take a "
                "smaller or quantized model"
            )

    def require(self, cache_bytes: int, tokens: int) -> None:
        """Raise EngineMemoryError if a request of `tokens` tokens in all would not fit even alone."""
        if not self.allows(cache_bytes):
            raise EngineMemoryError(
                f"the request needs {cache_bytes:,} bytes of cache for its {tokens} tokens, prompt and max_tokens, "
                f"beside weights of {self.weights:,}: over the memory_limit of {self.limit:,}; shorten the prompt, "
                "lower max_tokens, or raise memory_limit"
            )


def prefix_bytes(weights: int, memory_limit: int | None) -> int:
    """Return how many bytes of prefixes an engine keeps by default: a quarter of what is left, at most `MOST_PREFIXES`.

    What is left is beside the weights, of the limit, or without one of what the device recommends.
    """
    whole = working_set_bytes() if memory_limit is None else memory_limit
    return MOST_PREFIXES if whole is None else min(MOST_PREFIXES, max(whole - weights, 0) // 4)


class ProcessLimits:
    """The limits of one engine: MLX keeps `cache_limit` bytes of free buffers; on Metal, weights and caches stay wired.

    Wired is what Metal recommends as the working set, or `memory_limit` if that is less.
    """

    def __init__(self, cache_limit: int, memory_limit: int | None) -> None:
        self.cache_limit = cache_limit
        self.memory_limit = memory_limit

    def set(self) -> None:
        """Set both; what they were is remembered."""
        CACHE_LIMIT.claim(id(self), self.cache_limit)
        if (wired := backend.wireable_bytes()) is not None:
            WIRED_LIMIT.claim(id(self), min(wired, self.memory_limit or wired))

    def restore(self) -> None:
        """Set both to what they were, unless another engine is open."""
        CACHE_LIMIT.release(id(self))
        WIRED_LIMIT.release(id(self))
