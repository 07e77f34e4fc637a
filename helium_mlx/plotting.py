"""What every plot shares: the check of its file's name, before a long measurement, and the empty drawing.

matplotlib is not required; the extra `plot` brings it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from helium_mlx.errors import HeliumError, UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".svg", ".png", ".pdf")


def check_plot(path: str) -> None:
    """Raise UsageError unless `draw` can write `path`, HeliumError without matplotlib; before a long measurement."""
    if Path(path).suffix not in FORMATS:
        raise UsageError(f"--plot is {path}; its name must end in {', '.join(FORMATS)}")
    parent = Path(path).parent
    if not parent.is_dir():
        raise UsageError(f"--plot is {path}, and there is no directory {parent}; make it first")
    if Path(path).is_dir():
        raise UsageError(f"--plot is {path}, which is a directory; name a file")
    if not os.access(path if Path(path).exists() else parent, os.W_OK):
        raise UsageError(
            f"--plot is {path}, and {path if Path(path).exists() else parent} may not be written to; name another place"
        )
    if find_spec("matplotlib") is None:
        raise HeliumError("--plot needs matplotlib; install it with: pip install matplotlib")


@contextmanager
def drawing(path: str, caption: str) -> Iterator["Axes"]:
    """Give the axes to draw in, which are written to `path` at the end; the same picture gives the same file."""
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "helium_mlx"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.8), layout="constrained")
    try:
        yield axes
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
        figure.supxlabel(caption, fontsize=7, color="#666666", x=0.01, ha="left")
        figure.savefig(path, dpi=160, metadata={"Date": None} if path.endswith(".svg") else None)
    finally:
        pyplot.close(figure)
