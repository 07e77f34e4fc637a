"""What every plot shares: the check of its file's name, before a long measurement."""

from importlib.util import find_spec
from pathlib import Path

from helium_mlx.errors import HeliumError, UsageError

FORMATS = (".svg", ".png", ".pdf")


def check_plot(path: str) -> None:
    """Raise UsageError unless `draw` can write `path`, HeliumError without matplotlib; before a long measurement."""
    if Path(path).suffix not in FORMATS:
        raise UsageError(f"--plot is {path}; its name must end in {', '.join(FORMATS)}")
    if not Path(path).parent.is_dir():
        raise UsageError(f"--plot is {path}, and there is no directory {Path(path).parent}; make it first")
    if find_spec("matplotlib") is None:
        raise HeliumError("--plot needs matplotlib; install it with: pip install 'helium-mlx[plot]'")
