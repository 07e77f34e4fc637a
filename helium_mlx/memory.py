"""How much memory this process has taken."""

import resource
import sys


def peak_resident_memory() -> int:
    """Return the most memory, in bytes, that the process has had in RAM since it began."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Bytes on macOS, kibibytes elsewhere.
    return peak if sys.platform == "darwin" else peak * 1024
