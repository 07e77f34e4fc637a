"""Who may ask: the machine itself, a page of the server's own, pages that were named, and holders of the key.

A page from anywhere can have a browser send requests to 127.0.0.1, and can have a name of its own lead there (DNS
rebinding). So a server without a key answers only where `Host` is a name of this machine, and nobody answers a page
whose `Origin` is neither the server's own nor one that was allowed.
"""

import hmac
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from helium_mlx.errors import shown
from helium_mlx.server.errors import ApiError
from helium_mlx.server.http import Request

LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")

# What an allowed page may send; clients of OpenAI's add headers of their own.
_METHODS = "GET, POST, OPTIONS"

# Files and states that tell nothing of texts: a page, or what watches over the server, has no key.
_OPEN_PATHS = ("/", "/health")
_OPEN_PREFIX = "/page/"


@dataclass(frozen=True)
class Access:
    """The rules of a server. `api_key` None asks for none, which only a server on this machine may."""

    api_key: str | None = None
    allowed_origins: Collection[str] = ()
    is_local: bool = True

    def check(self, request: Request) -> None:
        """Raise ApiError unless the request may be answered."""
        host = request.headers.get("host", "")
        if self.is_local and self.api_key is None and not _is_local(host):
            raise ApiError(
                403,
                f"Host is {shown(host)}; this server answers to {', '.join(LOCAL_NAMES)} only, or with an --api-key",
            )
        origin = request.headers.get("origin")
        if origin is not None and not self._knows(origin, host):
            raise ApiError(403, f"Origin is {shown(origin)}; name it with --allow-origin to let its pages ask")
        is_open = request.path in _OPEN_PATHS or request.path.startswith(_OPEN_PREFIX) or request.method == "OPTIONS"
        if self.api_key is not None and not is_open:
            self._require_key(request.headers.get("authorization", ""))

    def headers(self, request: Request) -> Sequence[tuple[str, str]]:
        """Return the headers of every answer: what a browser may do with it."""
        headers = [("x-content-type-options", "nosniff"), ("vary", "Origin")]
        origin = request.headers.get("origin")
        if origin is not None and origin in self.allowed_origins:
            headers.append(("access-control-allow-origin", origin))
            if request.method == "OPTIONS":
                asked = request.headers.get("access-control-request-headers", "content-type, authorization")
                named = asked if asked.replace(",", "").replace("-", "").replace(" ", "").isalnum() else "content-type"
                headers += [
                    ("access-control-allow-methods", _METHODS),
                    ("access-control-allow-headers", named),
                    ("access-control-max-age", "600"),
                ]
        return headers

    def _knows(self, origin: str, host: str) -> bool:
        return origin in self.allowed_origins or (bool(host) and origin in (f"http://{host}", f"https://{host}"))

    def _require_key(self, authorization: str) -> None:
        scheme, _, key = authorization.partition(" ")
        assert self.api_key is not None
        # In time that tells nothing of how much of it was right.
        is_right = hmac.compare_digest(key.strip().encode("utf-8", "replace"), self.api_key.encode())
        if scheme.lower() != "bearer" or not is_right:
            raise ApiError(401, "the API key is missing or wrong; send it as Authorization: Bearer KEY")


def is_loopback(host: str) -> bool:
    """Whether an address to listen at is reached from this machine only."""
    return host in ("localhost", "::1") or (host.startswith("127.") and host.replace(".", "").isdigit())


def _is_local(host: str) -> bool:
    name, colon, port = host.rpartition(":")
    name = name if colon and port.isdigit() else host
    return name.lower() in LOCAL_NAMES or is_loopback(name.lower())
