"""Waiting for what another thread or process is about to bring about."""

import time
from collections.abc import Callable

# Only what never comes takes so long.
LONGEST_WAIT = 120.0


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until a condition holds; AssertionError where it never does."""
    end = time.monotonic() + LONGEST_WAIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)
