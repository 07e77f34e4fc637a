"""How much memory a process has taken."""

import resource
import sys


def peak_resident_memory() -> int:
    """Return the most memory, in bytes, that this process has had in RAM since it began."""
    return resident_bytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def resident_bytes(max_rss: int) -> int:
    """Return the bytes that a `ru_maxrss` says: it counts bytes on macOS, kibibytes elsewhere."""
    return max_rss if sys.platform == "darwin" else max_rss * 1024
