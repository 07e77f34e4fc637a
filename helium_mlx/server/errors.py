"""Errors as OpenAI's API spells them: one line that says what came, what was expected and what to do."""

from collections.abc import Sequence

from helium_mlx.errors import ContextOverflowError, EngineError, EngineMemoryError, HeliumError, UsageError, one_line
from helium_mlx.json_writer import to_json
from helium_mlx.server.http import Answer

# Seconds after which to come again, where the server is full.
RETRY_AFTER = 1

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """What a request is answered with in place of a result. `param` is the parameter that it is about."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(one_line(message, 1000))
        self.status = status
        self.param = param
        self.code = code
        self.headers = headers

    def answer(self) -> Answer:
        """Return it as an answer of its status."""
        headers = [*self.headers, *([("retry-after", str(RETRY_AFTER))] if self.status == 503 else [])]
        headers += [("www-authenticate", "Bearer")] if self.status == 401 else []
        return Answer(self.status, (self.text() + "\n").encode(), headers=headers)

    def text(self) -> str:
        """Return the JSON object that it is sent as."""
        fallback = "server_error" if self.status >= 500 else "invalid_request_error"
        described = {
            "message": str(self),
            "type": _TYPES.get(self.status, fallback),
            "param": self.param,
            "code": self.code,
        }
        return to_json({"error": described})


def bad(param: str, message: str) -> ApiError:
    """Return the error about a parameter; the message begins with its name."""
    return ApiError(400, message, param=param)


def refusal(status: int, message: str) -> Answer:
    """Return the answer to what is no request."""
    return ApiError(status, message).answer()


def as_api_error(error: Exception) -> ApiError:
    """Return what an error of the engine, or any other, is to a client. Of bugs only that there is one is told."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ContextOverflowError):
        return ApiError(400, str(error), param="prompt", code="context_length_exceeded")
    if isinstance(error, EngineMemoryError):
        return ApiError(400, str(error), param="prompt", code="memory_limit_exceeded")
    if isinstance(error, EngineError):
        return ApiError(503, str(error))
    if isinstance(error, UsageError):
        return ApiError(400, str(error), param=str(error).partition(" ")[0])
    if isinstance(error, HeliumError):
        return ApiError(400, str(error))
    return ApiError(500, f"the server failed ({type(error).__name__}); its log has where")
