"""What a command sets for its whole process before it uses the Hub's client: waiting, progress, and what is printed."""

import logging
import sys

from helium_mlx.hub_errors import without_token
from helium_mlx.terminal import Progress


class _WithoutToken(logging.Filter):
    """Takes the token out of what the client logs, where a server's words may end up."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = without_token(record.getMessage()), ()
        return True


def prepare_session(*, timeout: float) -> None:
    """Make the Hub's client give up on a server that is silent for `timeout` seconds; by itself it waits for ever.

    That is for its HTTP requests; Xet's have their own limits. The client's log lines lose the token.
    """
    from huggingface_hub import get_session

    get_session().timeout = timeout
    for handler in logging.getLogger("huggingface_hub").handlers:
        handler.addFilter(_WithoutToken())


def upload_progress() -> Progress | None:
    """Return what shows the progress of an upload: lines in a log. On a terminal the client's own bars do."""
    from huggingface_hub.utils import disable_progress_bars

    if sys.stderr.isatty():
        return None
    disable_progress_bars()
    return Progress("Uploading")
