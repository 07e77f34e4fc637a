"""The Hub's client as downloads and uploads use it: its limits, and what went wrong in one line.

`huggingface_hub` does the work: tokens, resumed transfers, `HF_ENDPOINT`, `HF_HUB_OFFLINE`. By itself it waits for ever
on a silent server, reads answers of any size, puts files where an answer says, and prints what a server says.
`hub_problems` stands around each of its calls: the session gets limits, and what a call raises becomes a HubProblem.
Xet's transfers do not use that session, and have limits of their own.
"""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, cast

from helium_mlx.errors import nearest, one_line
from helium_mlx.files.hub_cache import COMMIT
from helium_mlx.progress import load_quietly

if TYPE_CHECKING:
    import logging

if TYPE_CHECKING:
    from httpx2 import Request, Response, SyncByteStream

# Whose names are asked after where there is no such repository.
_HELIUM_2B = "kyutai/helium-1-2b"
REPOSITORIES = (
    "kyutai/helium-1-preview-2b",
    "mlx-community/helium-1-preview-2b-4bit",
    _HELIUM_2B,
    *(f"{_HELIUM_2B}-{name}" for name in ("books", "main", "science", "stem", "wiki")),
    "kyutai/Sequential_Helium_6B",
)

DEFAULT_TIMEOUT = 300.0
TIMEOUT_VARIABLE = "HELIUM_MLX_HUB_TIMEOUT"

# The largest answer that is not a file: the list of a repository, of which 100,000 names take 20 MB.
MAX_ANSWER_BYTES = 64_000_000
_MAX_SAID = 300

_TOKEN = re.compile(r"\b(hf|api_org)_[A-Za-z0-9_.-]*[A-Za-z0-9]{16,}")
_ETAG = re.compile(r'(W/)?"?[\w.+:=-]{1,200}"?', re.ASCII)
_FILE_HEADERS = {"etag": _ETAG, "x-linked-etag": _ETAG, "x-repo-commit": COMMIT}


class HubProblem(Exception):
    """What went wrong between here and the Hub, in one line that names the repository and says what to do.

    `is_unanswered`: the Hub did not answer, or failed. It may have done what it was asked.
    """

    def __init__(self, message: str, *, is_unanswered: bool = False) -> None:
        super().__init__(message)
        self.is_unanswered = is_unanswered


@cache
def _bounded_stream() -> type:
    """Return the class of a body that raises ValueError where it is too long or takes too long."""

    # The client takes only streams of its transport's class.
    class Bounded(_transport().SyncByteStream):
        def __init__(self, stream: "SyncByteStream", seconds: float) -> None:
            self._stream = stream
            self._deadline = time.monotonic() + seconds

        def __iter__(self) -> Iterator[bytes]:
            size = 0
            for part in self._stream:
                size += len(part)
                if size > MAX_ANSWER_BYTES:
                    raise ValueError(f"more than {MAX_ANSWER_BYTES} bytes of it")
                if time.monotonic() > self._deadline:
                    raise ValueError("it does not end")
                yield part

        def close(self) -> None:
            self._stream.close()

    return Bounded


class _Limits:
    """What each request of a session is held to."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout

    def before(self, request: "Request") -> None:
        """Give up on silence. As the session's default the client would not heed it: many calls ask for no limit."""
        asked = cast("dict[str, float | None]", request.extensions.get("timeout", {}))
        kinds = ("connect", "read", "write", "pool")
        request.extensions["timeout"] = {kind: min(asked.get(kind) or self.timeout, self.timeout) for kind in kinds}

    def after(self, response: "Response") -> None:
        """Bound an answer that is not a file, and refuse names of files: the client writes to them without a look."""
        if not response.headers.get("set-cookie", "").isascii():
            # The client would fail to send it back, with every request from here on.
            _forget_cookies()
        path = response.request.url.path
        if "/api/" in path and "resolve" not in path:
            response.stream = _bounded_stream()(response.stream, self.timeout)
        for name, pattern in _FILE_HEADERS.items() if response.request.method == "HEAD" else ():
            value = response.headers.get(name)
            if value is not None and (not pattern.fullmatch(value) or ".." in value):
                raise ValueError(f"the header {name} is {value!r}")


def _forget_cookies() -> None:
    from huggingface_hub import get_session

    get_session().cookies.clear()


class _Filter:
    """Makes the client's log lines safe to show: a server's words may be in them, with the token that it was sent."""

    def filter(self, record: "logging.LogRecord") -> bool:
        record.msg, record.args = legible(record.getMessage(), 1000), ()
        record.exc_info = record.exc_text = None
        return True


_FILTER = _Filter()


def prepare_session(*, timeout: float | None = None) -> None:
    """Make the client of this process give up on a server that is silent for `timeout` seconds, and hide tokens.

    Without `timeout`, what the session was given before stays; else it is HELIUM_MLX_HUB_TIMEOUT, or 300 s. A shorter
    limit of the client's own stays. That is for each HTTP request, and each try of those that it repeats.
    """
    from huggingface_hub import get_session

    load_quietly()
    hooks = get_session().event_hooks
    found = next((limits for hook in hooks["request"] if isinstance(limits := _owner(hook), _Limits)), None)
    if found is None:
        limits = _Limits(timeout or _configured_timeout())
        get_session().event_hooks = {
            "request": [*hooks["request"], limits.before],
            "response": [*hooks["response"], limits.after],
        }
    elif timeout is not None:
        found.timeout = timeout
    # Imported here: a checkpoint on this machine is loaded without it.
    import logging

    for handler in logging.getLogger("huggingface_hub").handlers:
        # A filter is added once, however often that is asked for.
        handler.addFilter(_FILTER)


def _owner(hook: object) -> object:
    return getattr(hook, "__self__", None)


def _configured_timeout() -> float:
    text = os.environ.get(TIMEOUT_VARIABLE, "")
    try:
        value = float(text or DEFAULT_TIMEOUT)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise HubProblem(f"{TIMEOUT_VARIABLE} is {text!r}; expected a number of seconds above 0 and below 1,000,000")
    return value


@contextmanager
def hub_problems(repo: str, *, writing: bool = False) -> Iterator[None]:
    """Raise HubProblem for whatever a call of the client about `repo` raises. Nothing else belongs inside."""
    prepare_session()
    try:
        yield
    except client_errors() as error:
        message = explained(error, repo, writing=writing)
        raise HubProblem(message, is_unanswered=is_unanswered(error)) from None


def client_errors() -> tuple[type[Exception], ...]:
    """Return what calls of `huggingface_hub` raise.

    Beside its own errors those are its transport's, which come from a package that is another one in other versions
    (httpx, httpx2); RuntimeError, which its threads wrap their errors in; and what its code runs into where an answer
    is not what it expects: a value of another type, a name that is not there, a number out of range.
    """
    from huggingface_hub import errors

    transport = _transport()
    own = (*errors.HfHubHTTPError.__bases__, errors.EntryNotFoundError, *_optional(errors, "XetDownloadError"))
    misread = (ValueError, TypeError, AttributeError, LookupError, NameError, ArithmeticError, AssertionError)
    return (*own, transport.InvalidURL, transport.CookieConflict, RuntimeError, *misread)


def _transport() -> ModuleType:
    """Return the package that the client speaks HTTP with: httpx, or httpx2 for newer ones."""
    import importlib

    from huggingface_hub.errors import HfHubHTTPError

    return importlib.import_module(HfHubHTTPError.__bases__[0].__module__.partition(".")[0])


def _optional(module: object, name: str) -> tuple[type[Exception], ...]:
    return (getattr(module, name),) if hasattr(module, name) else ()


def explained(error: BaseException, repo: str, *, writing: bool) -> str:
    """Return what went wrong in a call about `repo`, and what to do, in one line."""
    error = _root(error)
    status = status_of(error)
    problem = _without_answer(error, writing) if status is None else _refusal(error, status, repo, writing)
    return f"{repo}: {problem}"


def _root(error: BaseException) -> BaseException:
    """Return what is wrapped in errors that only say that something failed."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    wrappers = (RuntimeError, LocalEntryNotFoundError)
    while isinstance(error, wrappers) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _again(writing: bool) -> str:
    return (
        f"run the same command again: what {'the Hub has is not sent' if writing else 'is here is not fetched'} again"
    )


def _without_answer(error: BaseException, writing: bool) -> str:
    """Return what is wrong where there is no status: offline, network, disk, or an answer that is none."""
    from huggingface_hub import constants
    from huggingface_hub.errors import FileMetadataError, OfflineModeIsEnabled

    transport, again = _transport(), _again(writing)
    said = legible(str(error)) or type(error).__name__
    hub = f"the Hub at {legible(constants.ENDPOINT)}"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so that the Hub is not asked; unset it"
    if isinstance(error, (transport.TooManyRedirects, transport.InvalidURL, transport.UnsupportedProtocol)):
        return f"{hub} redirects to where nothing is ({said}); check HF_ENDPOINT and the proxy"
    if isinstance(error, (transport.ConnectError, transport.ProxyError, transport.ConnectTimeout)):
        return f"{hub} was not reached ({said}); check the network, and {again}"
    if isinstance(error, OSError) and not isinstance(error, (ConnectionError, TimeoutError, FileMetadataError)):
        reason = error.strerror or said
        if error.errno is not None:
            return f"a file of it cannot be written or read here ({reason}); make room, or see to its permissions"
    if isinstance(error, (transport.HTTPError, OSError)) and not isinstance(error, FileMetadataError):
        return f"{hub} was not reached or broke off ({said}); {again}"
    return f"{hub} answered what no Hub does ({type(error).__name__}: {said}); check HF_ENDPOINT and the proxy"


def _refusal(error: BaseException, status: int, repo: str, writing: bool) -> str:
    """Return what a status means here, with what the server says of it."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError

    # Only what the server says; the client's own text has several lines, and says less than ours.
    said = legible(str(getattr(error, "server_message", None) or ""))
    answered = f"{status}, {said}" if said else str(status)
    known = None if writing or repo in REPOSITORIES else nearest(repo, REPOSITORIES)
    near = f" (near it: {known})" if known else ""
    again, page = _again(writing), f"{legible(constants.ENDPOINT)}/{repo}"
    if isinstance(error, GatedRepoError):
        login = "" if get_token() else ", and log in with `hf auth login`"
        return f"its owner lets only those in who accept the terms ({answered}); do that at {page}{login}"
    if isinstance(error, EntryNotFoundError):
        return f"the Hub has no such file in it ({answered}); check the name"
    if not get_token() and (status == 401 or isinstance(error, RepositoryNotFoundError)):
        return (
            f"the Hub has no such repository, or shows it only with a token, and there is none here ({answered}); "
            f"check the name{near}, or log in with `hf auth login`"
        )
    if isinstance(error, RepositoryNotFoundError):
        status = 404
    may, access = ("write", "write access to it") if writing else ("read", "access to it")
    known = {
        400: f"the Hub refused what was sent ({answered})",
        401: f"the Hub does not accept the token ({answered}); log in with `hf auth login`, or set HF_TOKEN anew",
        403: f"the token may not {may} there ({answered}); take one with {access}, or another name",
        404: f"the Hub has no such repository or revision, or the token may not see it ({answered}); "
        f"check the name{near}",
        409: f"the repository is being changed by somebody else ({answered}); {again}",
        412: f"the repository was changed by somebody else meanwhile ({answered}); {again}",
        429: f"the Hub asks for a pause ({answered}); wait some minutes, and {again}",
    }
    if status >= 500:
        return f"the Hub failed ({answered}); {again}"
    return known.get(status, f"the Hub refused the request ({answered})")


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that an error is about; None for those of the transport and of the client itself."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def is_unanswered(error: BaseException) -> bool:
    """Whether the Hub did not answer, or failed, so that it may have done what it was asked."""
    status = status_of(_root(error))
    return status is None or status >= 500


def legible(text: str, limit: int = _MAX_SAID) -> str:
    """Return what a server said in one line: without tokens and control characters, cut to `limit` characters."""
    return one_line(without_token(re.sub(r"\s+", " ", text[: 20 * limit]).strip().rstrip(".")), limit)


def without_token(text: str) -> str:
    """Return a text in which neither the token of this machine is legible, nor what looks like one of the Hub's."""
    from huggingface_hub import get_token

    token = get_token()
    return _TOKEN.sub("***", text.replace(token, "***") if token else text)
