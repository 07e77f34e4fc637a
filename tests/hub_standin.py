"""A stand-in for the Hugging Face Hub on loopback: what of its HTTP interface the real client needs."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubStandIn:
    """Serves repositories from directories and remembers the requests."""

    def __init__(self, repositories: dict[str, Path]) -> None:
        self.repositories = repositories
        self.requests: list[str] = []
        self.created: list[dict[str, object]] = []
        self.uploaded: dict[str, dict[str, bytes]] = {}
        self.refuses_uploads = False
        self.url = ""

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body for a path."""
        self.requests.append(path)
        for repo, directory in self.repositories.items():
            if path.startswith(f"/api/models/{repo}/tree/"):
                return 200, {"Content-Type": "application/json"}, json.dumps(self._tree(directory)).encode()
            if path == f"/api/models/{repo}" or path.startswith(f"/api/models/{repo}/revision/"):
                revision = path.rpartition("/")[2]
                if revision not in ("main", "v1", COMMIT, repo.rpartition("/")[2]):
                    return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
                return 200, {"Content-Type": "application/json"}, json.dumps(self._info(repo, directory)).encode()
            if path.startswith(f"/{repo}/resolve/"):
                return self._file(directory / path.split("/", 5)[5])
        return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"

    def take(self, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body for an upload's requests: create, preupload, commit."""
        self.requests.append(path)
        if self.refuses_uploads:
            return 403, {"X-Error-Message": "You don't have the rights to do that"}, b"{}"
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            repo = f"{self.created[-1].get('organization') or 'somebody'}/{self.created[-1]['name']}"
            return 200, {"Content-Type": "application/json"}, json.dumps({"url": f"{self.url}/{repo}"}).encode()
        repo = "/".join(path.split("/")[3:5])
        if "/preupload/" in path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for file in json.loads(body)["files"]
            ]
            return 200, {"Content-Type": "application/json"}, json.dumps({"files": files}).encode()
        lines = [json.loads(line) for line in body.splitlines()]
        files = [line["value"] for line in lines if line["key"] == "file"]
        self.uploaded[repo] = {file["path"]: base64.b64decode(file["content"]) for file in files}
        url = f"{self.url}/{repo}/commit/{COMMIT}"
        answer = {"success": True, "commitUrl": url, "commitOid": COMMIT, "hookOutput": ""}
        return 200, {"Content-Type": "application/json"}, json.dumps(answer).encode()

    def _info(self, repo: str, directory: Path) -> dict[str, object]:
        siblings = [{"rfilename": entry["path"], "size": entry["size"]} for entry in self._tree(directory)]
        return {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}

    def _tree(self, directory: Path) -> list[dict[str, object]]:
        return [
            {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": _digest(path)}
            for path in sorted(directory.iterdir())
        ]

    def _file(self, path: Path) -> tuple[int, dict[str, str], bytes]:
        if not path.is_file():
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        return 200, {"ETag": f'"{_digest(path)}"', "X-Repo-Commit": COMMIT}, path.read_bytes()


def _digest(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@contextmanager
def serve(repositories: dict[str, Path]) -> Iterator[HubStandIn]:
    """Run a stand-in while the context lasts; its `url` goes into HF_ENDPOINT."""
    hub = HubStandIn(repositories)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(*hub.answer(unquote(urlsplit(self.path).path)))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])) if "Content-Length" in self.headers else b""
            self._send(*hub.take(unquote(urlsplit(self.path).path), body or self._chunks()))

        def _chunks(self) -> bytes:
            parts = []
            while size := int(self.rfile.readline().strip() or b"0", 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            return b"".join(parts)

        def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
