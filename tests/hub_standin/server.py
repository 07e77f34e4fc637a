"""The HTTP side of the stand-in: each request of the real client, answered from `Repository` objects."""

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from hub_standin.faults import Fault
from hub_standin.repository import Commit, ConflictError, Repository, is_lfs_file

CHUNK = 1 << 14

# So long, in seconds, a silent stand-in waits for `goes_on`: a client without a limit shall not wait for ever.
LONGEST_SILENCE = 60


@dataclass
class Answer:
    """Status, headers and body of a response."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    is_cut: bool = False

    @classmethod
    def of_json(cls, value: object, status: int = 200) -> "Answer":
        """Return a response that carries JSON."""
        return cls(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    @classmethod
    def error(cls, status: int, code: str = "", message: str = "") -> "Answer":
        """Return an error as the Hub sends it."""
        said = {"X-Error-Code": code, "X-Error-Message": message}
        return cls(status, json.dumps({"error": message}).encode(), {name: text for name, text in said.items() if text})


@dataclass
class Request:
    """What came: `path` without query, and `body` in full."""

    method: str
    path: str
    query: dict[str, list[str]]
    token: str | None
    body: bytes

    @property
    def json(self) -> dict[str, object]:
        """The body as an object."""
        return json.loads(self.body)


class HubStandIn:
    """Holds repositories and remembers the requests.

    `requests` are the paths asked for, `calls` the same with their methods, `received` the bytes of bodies by path and
    method, also of those cut off. `faults` are tried in order. `part_size` makes LFS ask for several parts a file.
    `read_only` are tokens that may not write; `tokens` are those that there are, where that matters. `goes_on` is for
    a test to set: a silent fault then does what was asked.
    """

    def __init__(self, repositories: Mapping[str, Repository]) -> None:
        self.repositories = dict(repositories)
        self.requests: list[str] = []
        self.calls: list[tuple[str, str]] = []
        self.received: dict[tuple[str, str], int] = {}
        self.created: list[dict[str, object]] = []
        self.faults: list[Fault] = []
        self.part_size: int | None = None
        self.parts: dict[str, dict[int, bytes]] = {}
        self.tokens: set[str] | None = None
        self.read_only: set[str] = set()
        self.refuses_uploads = False
        self.url = ""
        self.lock = threading.Lock()
        self.goes_on = threading.Event()

    @property
    def uploaded(self) -> dict[str, dict[str, bytes]]:
        """The files of each repository's main branch."""
        return {name: repository.files() for name, repository in self.repositories.items()}

    def sent(self, method: str, path: str) -> int:
        """Return how many bytes of bodies came with a method to paths that hold a text."""
        return sum(size for (how, where), size in self.received.items() if how == method and path in where)

    def is_silent_at(self, method: str, path: str) -> bool:
        """Whether nothing is answered to a method at a path."""
        with self.lock:
            fault = next((fault for fault in self.faults if fault.fits(method, path)), None)
        return fault is not None and fault.is_silent and not self.goes_on.is_set()

    def times(self, method: str, path: str) -> int:
        """Return how often a method came to paths that hold a text."""
        return sum(how == method and path in where for how, where in self.calls)

    def answer(self, request: Request) -> Answer:
        """Return the response to a request."""
        if request.token is not None and self.tokens is not None and request.token not in self.tokens:
            return Answer.error(401, message="Invalid credentials in Authorization header")
        for method, pattern, handle in self._routes():
            found = re.fullmatch(pattern, request.path)
            if found and re.fullmatch(method, request.method.replace("HEAD", "GET")):
                return handle(request, *found.groups())
        return Answer.error(404, "RepoNotFound")

    def _routes(self) -> list[tuple[str, str, Callable[..., Answer]]]:
        repo, revision = r"([^/]+/[^/]+)", r"(refs/pr/\d+|[^/]+)"
        return [
            ("POST", "/api/repos/create", self._writing(self._create)),
            ("POST", "/api/validate-yaml", self._validate_card),
            ("GET", f"/api/models/{repo}", self._reading(self._info)),
            ("GET", f"/api/models/{repo}/revision/{revision}", self._reading(self._info)),
            ("GET", f"/api/models/{repo}/refs", self._reading(self._refs)),
            ("GET", f"/api/models/{repo}/tree/{revision}", self._reading(self._tree)),
            ("GET", f"/{repo}/resolve/{revision}/(.+)", self._reading(self._file)),
            ("POST", f"/api/models/{repo}/branch/{revision}", self._writing(self._branch)),
            ("POST", f"/api/models/{repo}/preupload/{revision}", self._writing(self._preupload)),
            ("POST", f"/{repo}.git/info/lfs/objects/batch", self._writing(self._batch)),
            ("PUT", f"/lfs/{repo}/([0-9a-f]+)/part/([0-9]+)", self._put_part),
            ("POST", f"/lfs/{repo}/([0-9a-f]+)/complete", self._complete),
            ("PUT", f"/lfs/{repo}/([0-9a-f]+)", self._put),
            ("POST", f"/lfs/{repo}/([0-9a-f]+)/verify", self._verify),
            ("POST", f"/api/models/{repo}/commit/{revision}", self._writing(self._commit)),
            ("GET", f"/api/models/{repo}/xet-write-token/{revision}", self._writing(self._xet_token)),
            ("POST", f"/xet/{repo}/v1/xorbs/default/[0-9a-f]+", self._xorb),
            ("POST", f"/xet/{repo}/v1/shards", self._shard),
            ("(GET|POST)", f"/xet/{repo}/.*", lambda request, repo: Answer(404)),
        ]

    def _reading(self, handle: Callable[..., Answer]) -> Callable[..., Answer]:
        """Answer as the Hub does for a repository that there is not or that one may not see."""

        def checked(request: Request, repo: str, revision: str = "main", *rest: str) -> Answer:
            repository = self.repositories.get(repo)
            if repository is None or (repository.private and request.token is None):
                return Answer.error(404 if request.token else 401, "RepoNotFound", "Repository not found")
            commit = repository.find(revision)
            if commit is None:
                return Answer.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return handle(request, repo, repository, commit, *rest)

        return checked

    def _writing(self, handle: Callable[..., Answer]) -> Callable[..., Answer]:
        def checked(request: Request, *rest: str) -> Answer:
            if request.token is None:
                return Answer.error(401, message="Invalid username or password.")
            if self.refuses_uploads or request.token in self.read_only:
                return Answer.error(403, message="You don't have the rights to do that")
            if rest and rest[0] not in self.repositories:
                return Answer.error(404, "RepoNotFound", "Repository not found")
            return handle(request, *rest)

        return checked

    def _create(self, request: Request) -> Answer:
        made = request.json
        self.created.append(made)
        repo = f"{made.get('organization') or 'somebody'}/{made['name']}"
        if repo in self.repositories:
            said = {"error": "You already created this model repo", "url": f"{self.url}/{repo}"}
            return Answer.of_json(said, 409)
        is_private = made.get("private") is True or made.get("visibility") == "private"
        self.repositories[repo] = Repository.empty(private=is_private)
        return Answer.of_json({"url": f"{self.url}/{repo}"})

    def _validate_card(self, request: Request) -> Answer:
        """Accept front matter that is a YAML mapping, as the Hub does before it looks at the keys."""
        front_matter = str(request.json["content"]).split("---\n")
        try:
            values = yaml.safe_load(front_matter[1]) if len(front_matter) > 2 else {}
        except yaml.YAMLError as error:
            return Answer.of_json({"errors": [{"message": str(error)}], "warnings": []}, 400)
        errors = [] if isinstance(values, dict) else [{"message": "must be an object"}]
        return Answer.of_json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def _info(self, request: Request, repo: str, repository: Repository, commit: Commit) -> Answer:
        siblings = [{"rfilename": path, "size": len(blob.data)} for path, blob in commit.files.items()]
        return Answer.of_json(
            {
                "id": repo,
                "modelId": repo,
                "sha": commit.oid,
                "siblings": siblings,
                "private": repository.private,
                "tags": [],
            }
        )

    def _refs(self, request: Request, repo: str, repository: Repository, commit: Commit) -> Answer:
        def listed(references: dict[str, str], prefix: str) -> list[dict[str, str]]:
            return [{"name": name, "ref": prefix + name, "targetCommit": oid} for name, oid in references.items()]

        pull_requests = listed(repository.pull_requests, "")
        answer = {"branches": listed(repository.branches, "refs/heads/"), "tags": [], "converts": []}
        return Answer.of_json(answer | ({"pullRequests": pull_requests} if "include_prs" in request.query else {}))

    def _tree(self, request: Request, repo: str, repository: Repository, commit: Commit) -> Answer:
        return Answer.of_json([blob.entry(path) for path, blob in sorted(commit.files.items())])

    def _file(self, request: Request, repo: str, repository: Repository, commit: Commit, path: str) -> Answer:
        blob = commit.files.get(path)
        if blob is None:
            return Answer.error(404, "EntryNotFound", "Entry not found")
        return Answer(200, blob.data, {"ETag": f'"{blob.etag}"', "X-Repo-Commit": commit.oid})

    def _branch(self, request: Request, repo: str, branch: str) -> Answer:
        repository = self.repositories[repo]
        if branch in repository.branches:
            return Answer.error(409, message="Reference already exists")
        repository.branches[branch] = repository.branches["main"]
        return Answer(201)

    def _preupload(self, request: Request, repo: str, revision: str) -> Answer:
        commit = self.repositories[repo].find(revision)
        if commit is None:
            return Answer.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = []
        for file in request.json["files"]:  # pyright: ignore[reportGeneralTypeIssues]
            path = file["path"]
            remote = commit.files.get(path)
            mode = "lfs" if is_lfs_file(path) else "regular"
            files.append(
                {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": remote.etag if remote else None}
            )
        return Answer.of_json({"files": files})

    def _batch(self, request: Request, repo: str) -> Answer:
        """Name where each large file is to go; nothing for those that are there."""
        known = self.repositories[repo].lfs
        objects = []
        for wanted in request.json["objects"]:  # pyright: ignore[reportGeneralTypeIssues]
            oid, size = wanted["oid"], wanted["size"]
            url = f"{self.url}/lfs/{repo}/{oid}"
            header = {"Authorization": "signed"}
            if self.part_size is not None and size > self.part_size:
                count = -(-size // self.part_size)
                header = {f"{i:05d}": f"{url}/part/{i}" for i in range(1, count + 1)}
                header["chunk_size"] = str(self.part_size)
            upload = {"href": f"{url}/complete" if "chunk_size" in header else url, "header": header}
            actions = {"upload": upload, "verify": {"href": f"{url}/verify"}}
            objects.append({"oid": oid, "size": size} | ({} if oid in known else {"actions": actions}))
        # Clients that ask for Xet, and for LFS in the same breath, get Xet.
        offered = request.json.get("transfers")
        transfer = "xet" if isinstance(offered, list) and "xet" in offered else "basic"
        return Answer.of_json({"transfer": transfer, "objects": objects})

    def _put(self, request: Request, repo: str, oid: str) -> Answer:
        self.repositories[repo].lfs[oid] = request.body
        return Answer(200)

    def _put_part(self, request: Request, repo: str, oid: str, number: str) -> Answer:
        self.parts.setdefault(oid, {})[int(number)] = request.body
        return Answer(200, headers={"ETag": f'"{number}"'})

    def _complete(self, request: Request, repo: str, oid: str) -> Answer:
        parts = self.parts.pop(oid)
        self.repositories[repo].lfs[oid] = b"".join(parts[number] for number in sorted(parts))
        return Answer.of_json({})

    def _verify(self, request: Request, repo: str, oid: str) -> Answer:
        stored = self.repositories[repo].lfs.get(oid, b"")
        return Answer.of_json({}, 200 if len(stored) == request.json["size"] else 422)

    def _xet_token(self, request: Request, repo: str, revision: str) -> Answer:
        access = {"casUrl": f"{self.url}/xet/{repo}", "exp": 4_000_000_000, "accessToken": "of a stand-in"}
        headers = {
            "X-Xet-Cas-Url": f"{self.url}/xet/{repo}",
            "X-Xet-Access-Token": "of a stand-in",
            "X-Xet-Token-Expiration": "4000000000",
        }
        return Answer(200, json.dumps(access).encode(), {"Content-Type": "application/json", **headers})

    def _xorb(self, request: Request, repo: str) -> Answer:
        return Answer.of_json({"was_inserted": True})

    def _shard(self, request: Request, repo: str) -> Answer:
        self.repositories[repo].shards.append(request.body)
        return Answer.of_json({"result": 1})

    def _commit(self, request: Request, repo: str, revision: str) -> Answer:
        repository = self.repositories[repo]
        lines = [json.loads(line) for line in request.body.splitlines()]
        try:
            oid, reference = repository.commit(revision, lines, create_pr="create_pr" in request.query)
        except ConflictError:
            return Answer.error(412, message="A commit has happened since. Please refresh and try again.")
        answer = {"success": True, "commitUrl": f"{self.url}/{repo}/commit/{oid}", "commitOid": oid, "hookOutput": ""}
        if reference.startswith("refs/pr/"):
            number = reference.rpartition("/")[2]
            answer["pullRequestUrl"] = f"{self.url}/{repo}/discussions/{number}"
        return Answer.of_json(answer)


@contextmanager
def serve(repositories: Mapping[str, Repository | Path]) -> Iterator[HubStandIn]:
    """Run a stand-in while the context lasts; its `url` goes into HF_ENDPOINT. Directories become repositories."""
    hub = HubStandIn({name: _as_repository(source) for name, source in repositories.items()})

    class Handler(_Handler):
        stand_in = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        hub.goes_on.set()
        server.shutdown()
        server.server_close()


def _as_repository(source: Repository | Path) -> Repository:
    if isinstance(source, Repository):
        return source
    return Repository.of_files({path.name: path.read_bytes() for path in sorted(source.iterdir())})


class _ClosedError(Exception):
    """The connection is to be closed without an answer."""


class _Handler(BaseHTTPRequestHandler):
    stand_in: HubStandIn

    def do_GET(self) -> None:
        try:
            self._send(self._answer())
        except (_ClosedError, ConnectionError):
            self.close_connection = True

    do_POST = do_PUT = do_HEAD = do_GET

    def _answer(self) -> Answer:
        hub, url = self.stand_in, urlsplit(self.path)
        path = unquote(url.path)
        with hub.lock:
            hub.requests.append(path)
            hub.calls.append((self.command, path))
            fault = next((fault for fault in hub.faults if fault.meets(self.command, path)), None)
        if fault and fault.is_silent:
            self.stand_in.goes_on.wait(LONGEST_SILENCE)
        body = self._body(path, None if fault is None else fault.cut_after)
        if fault and fault.status is not None:
            said = Answer.error(fault.status, message=fault.message)
            return Answer(said.status, said.body, said.headers | fault.headers)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        with hub.lock:
            answer = hub.answer(Request(self.command, path, parse_qs(url.query), token, body))
        if fault and fault.lose_answer:
            raise _ClosedError
        if fault:
            answer = Answer(answer.status, fault.changed(answer.body), answer.headers | fault.headers)
            answer.is_cut = fault.is_cut
        return answer

    def _body(self, path: str, cut_after: int | None) -> bytes:
        """Read the body, and count it as it comes; close the connection after `cut_after` bytes."""
        parts, size = [], 0
        for part in self._parts():
            parts.append(part)
            size += len(part)
            with self.stand_in.lock:
                key = (self.command, path)
                self.stand_in.received[key] = self.stand_in.received.get(key, 0) + len(part)
            if cut_after is not None and size >= cut_after:
                raise _ClosedError
        if cut_after is not None:
            raise _ClosedError
        return b"".join(parts)

    def _parts(self) -> Iterator[bytes]:
        if "Content-Length" in self.headers:
            left = int(self.headers["Content-Length"])
            while left and (part := self.rfile.read(min(left, CHUNK))):
                left -= len(part)
                yield part
        elif "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline().strip() or b"0", 16):
                yield self.rfile.read(size)
                self.rfile.readline()

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if "Content-Length" not in answer.headers:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: len(answer.body) // 2] if answer.is_cut else answer.body)
        if answer.is_cut:
            raise _ClosedError

    def log_message(self, format: str, *args: object) -> None:
        return
