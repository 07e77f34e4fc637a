"""What the Hub's client raises, as one line that says what to do, and never holds a token."""

import re

from helium_mlx.json_files import one_line

AGAIN = "run the same command again: what the Hub has is not sent again"


def client_errors() -> tuple[type[Exception], ...]:
    """Return what calls of `huggingface_hub` raise.

    Beside its own errors those are its transport's, which come from a package that is another one in other versions
    (httpx, httpx2); RuntimeError, which its threads wrap their errors in; and ValueError, for answers it cannot read.
    """
    from huggingface_hub.errors import HfHubHTTPError

    return (*HfHubHTTPError.__bases__, ValueError, RuntimeError)


def explained(error: BaseException, repo: str) -> str:
    """Return what went wrong in a call about `repo`, and what to do, in one line."""
    from huggingface_hub import constants
    from huggingface_hub.errors import OfflineModeIsEnabled

    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    status, said = status_of(error), _said(error)
    if isinstance(error, OfflineModeIsEnabled):
        return f"{repo}: HF_HUB_OFFLINE is set, so that the Hub is not asked; unset it"
    if status is None:
        kind = type(error).__name__
        return f"{repo}: the Hub at {constants.ENDPOINT} was not reached or broke off ({said or kind}); {AGAIN}"
    answered = f"{status}, {said}" if said else str(status)
    return f"{repo}: {_remedy(status).format(answered=answered)}"


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that an error is about; None for those of the transport and of the client itself."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def may_have_been_done(error: BaseException) -> bool:
    """Whether the Hub may have done what it was asked, and only the answer is missing."""
    status = status_of(error)
    return status is None or status >= 500


def without_token(text: str) -> str:
    """Return a text in which the token of this machine is not legible."""
    from huggingface_hub import get_token

    token = get_token()
    return text.replace(token, "***") if token else text


def _remedy(status: int) -> str:
    known = {
        400: "the Hub refused what was sent ({answered})",
        401: "the Hub does not accept the token ({answered}); log in with `hf auth login`, or set HF_TOKEN anew",
        403: "the token may not write there ({answered}); take one with write access to it, or another name",
        404: "the Hub has no such repository or revision, or the token may not see it ({answered}); check the name",
        409: "the repository is being changed by somebody else ({answered}); " + AGAIN,
        412: "the repository was changed by somebody else meanwhile ({answered}); " + AGAIN,
        429: "the Hub asks for a pause ({answered}); wait some minutes, and " + AGAIN,
    }
    if status >= 500:
        return "the Hub failed ({answered}); " + AGAIN
    # Braces of what the Hub said are no fields of a format.
    return known.get(status, "the Hub refused the request ({answered})")


def _said(error: BaseException) -> str:
    """Return what the server says, else what the client says of it, in one line."""
    said = getattr(error, "server_message", None)
    if not said and status_of(error) is None:
        said = str(error)
    return one_line(without_token(re.sub(r"\s+", " ", str(said or "")).strip().rstrip(".")), 300)
