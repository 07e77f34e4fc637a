"""What a command sets for its whole process before it uses the Hub's client: waiting, progress, and what is printed."""

import logging
import sys

from helium_mlx.files.hub import without_token
from helium_mlx.terminal import Progress

DEFAULT_TIMEOUT = 300.0


class _WithoutToken(logging.Filter):
    """Takes the token out of what the client logs, where a server's words may end up."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = without_token(record.getMessage()), ()
        return True


def prepare_session(*, timeout: float) -> None:
    """Make the Hub's client give up on a server that is silent for `timeout` seconds; by itself it waits for ever.

    That is for each of its HTTP requests, and each try of those that it repeats; Xet's have their own limits. The
    client's log lines lose the token.
    """
    from huggingface_hub import get_session

    # As a default the client would not heed it: many of its calls ask for no limit outright.
    limits = dict.fromkeys(("connect", "read", "write", "pool"), timeout)
    hooks = get_session().event_hooks
    get_session().event_hooks = {
        **hooks,
        "request": [*hooks["request"], lambda request: request.extensions.update(timeout=limits)],
    }
    for handler in logging.getLogger("huggingface_hub").handlers:
        handler.addFilter(_WithoutToken())


def upload_progress() -> Progress | None:
    """Return what shows the progress of an upload: lines in a log. On a terminal the client's own bars do."""
    from huggingface_hub.utils import disable_progress_bars

    if sys.stderr.isatty():
        return None
    disable_progress_bars()
    return Progress("Uploading")
