"""How the progress of an upload is shown."""

import sys

from helium_mlx.progress import Progress


def upload_progress() -> Progress | None:
    """Return what shows the progress of an upload: lines in a log. On a terminal the client's own bars do."""
    from huggingface_hub.utils import disable_progress_bars

    if sys.stderr.isatty():
        return None
    disable_progress_bars()
    return Progress("Uploading")
