"""A Hub that misbehaves, in both directions: one line, status 1, no token, nothing half-written, and an end."""

import copy
import gzip
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hub_standin import COMMIT, Fault, HubStandIn, Repository, serve
from hub_standin.client import TOKEN, run, set_token, use

import helium_mlx
from helium_mlx import HeliumConfig, HeliumForCausalLM, HeliumTokenizer
from helium_mlx.errors import UploadError, UsageError
from helium_mlx.files.hub import DEMO_DIRECTORY
from helium_mlx.generate import main as generate_main
from helium_mlx.upload import main as upload_main

REPO = "somebody/tiny"

# The limit, in seconds: where the stand-in says nothing at all, they pass in milliseconds.
SILENCE = "60"
HTML = b"<!DOCTYPE html><html><body>Sign in to the network</body></html>"
BOMB = b'{"a":' * 100_000


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faults") / "tiny"
    helium_mlx.convert("demo", str(path), quantize=True)
    return path


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubStandIn]:
    files = {path.name: path.read_bytes() for path in DEMO_DIRECTORY.iterdir()}
    with serve({REPO: Repository.of_files(files)}) as hub:
        monkeypatch.setenv("HELIUM_MLX_HUB_TIMEOUT", SILENCE)
        monkeypatch.chdir(tmp_path)
        use(hub, monkeypatch, tmp_path / "home")
        yield hub


def edited(**changes: object) -> Callable[[dict[str, object]], object]:
    return lambda answer: {**answer, **changes}


def each_file(**changes: object) -> Callable[[dict], object]:
    return lambda answer: {**answer, "siblings": [{**file, **changes} for file in answer["siblings"]]}


INFO, FILE = f"/api/models/{REPO}", "/resolve/"
LISTING_FAULTS = {
    "html": {"body": HTML, "headers": {"Content-Type": "text/html"}},
    "empty": {"body": b""},
    "a list": {"body": b"[]"},
    "null": {"body": b"null"},
    "text": {"body": b'"x"'},
    "a bomb": {"body": BOMB},
    "not UTF-8": {"body": b"\xff\xfe{}"},
    "cut": {"is_cut": True},
    "closed": {"lose_answer": True},
    "silent": {"is_silent": True},
    "redirected to itself": {"status": 302, "headers": {"Location": INFO}},
    "redirected to nowhere": {"status": 302, "headers": {"Location": "http://[nowhere"}},
    "redirected to a file": {"status": 302, "headers": {"Location": "file:///etc/passwd"}},
    "no commit": {"edit": edited(sha=None)},
    "a number for the commit": {"edit": edited(sha=7)},
    "a path for the commit": {"edit": edited(sha="../../../x")},
    "a number for the id": {"edit": edited(id=None, modelId=[])},
    "bad dates": {"edit": edited(lastModified="yesterday", createdAt=1e308)},
    "bad tags": {"edit": edited(cardData=[1], tags=3)},
    "unlucky status 299": {"status": 299, "message": "x"},
    **{f"status {status}": {"status": status, "message": f"for {TOKEN}\n\x1b[2J" + "x" * 5000}
       for status in (400, 401, 402, 403, 404, 408, 418, 429, 451, 500, 503, 504)},
}  # fmt: skip
DOWNLOAD_ONLY_FAULTS = {
    "files that are no list": {"edit": edited(siblings=7)},
    "files that are numbers": {"edit": edited(siblings=[1, 2])},
    "files without names": {"edit": edited(siblings=[{"size": 3}])},
    "names that are numbers": {"edit": each_file(rfilename=7)},
    "no sizes": {"edit": each_file(size=None)},
    "sizes that are texts": {"edit": each_file(size="large")},
    "negative sizes": {"edit": each_file(size=-1)},
    "sizes that are infinite": {"edit": each_file(size=float("inf"))},
    "huge sizes": {"edit": each_file(size=10**400)},
    "wrong sizes": {"edit": each_file(size=17)},
    "bad large files": {"edit": each_file(lfs={"size": "x"})},
}
FILE_FAULTS = {
    "html": ("GET", {"body": HTML}),
    "cut": ("GET", {"is_cut": True}),
    "silent": ("GET", {"is_silent": True}),
    "longer than said": ("GET", {"body": b"x" * 2_000_000}),
    "closed": ("GET", {"lose_answer": True}),
    "status 503": ("GET", {"status": 503, "message": f"for {TOKEN}"}),
    "status 403": ("GET", {"status": 403, "message": f"for {TOKEN}"}),
    "head closed": ("HEAD", {"lose_answer": True}),
    "head silent": ("HEAD", {"is_silent": True}),
    "head redirected to itself": ("HEAD", {"status": 302, "headers": {"Location": f"/{REPO}/resolve/{COMMIT}/x"}}),
    "an etag that is a path": ("HEAD", {"headers": {"ETag": '"../../../../escaped"'}}),
    "an etag that is absolute": ("HEAD", {"headers": {"ETag": '"/tmp/escaped"'}}),
    "an etag that is empty": ("HEAD", {"headers": {"ETag": '""'}}),
    "a linked etag that is a path": ("HEAD", {"headers": {"X-Linked-Etag": '"../../../../escaped"'}}),
    "a long etag": ("HEAD", {"headers": {"ETag": f'"{"x" * 5000}"'}}),
    "a commit that is a path": ("HEAD", {"headers": {"X-Repo-Commit": "../../../escaped"}}),
    "another commit": ("HEAD", {"headers": {"X-Repo-Commit": "f" * 40}}),
    "a size that is negative": ("HEAD", {"headers": {"X-Linked-Size": "-5"}}),
    "status 404": ("HEAD", {"status": 404, "message": f"for {TOKEN}"}),
    "status 500": ("HEAD", {"status": 500}),
}  # fmt: skip


def error_of(capfd: pytest.CaptureFixture[str], status: int) -> str:
    out, err = capfd.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert status == 1, err
    assert len(errors) == 1, err
    assert len(errors[0]) < 1000
    assert "Traceback" not in err
    assert TOKEN not in out + err
    assert "\x1b" not in err
    return errors[0]


def download() -> int:
    return generate_main(["--model", REPO, "--prompt", "Bonjour", "-m", "2", "--quiet"])


def written(home: Path) -> set[str]:
    return {path.name for path in home.glob("hub/models--*/snapshots/*/*")}


@pytest.mark.parametrize("name", LISTING_FAULTS | DOWNLOAD_ONLY_FAULTS)
def test_a_bad_list_of_files_is_one_line(
    hub: HubStandIn, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    fault = (LISTING_FAULTS | DOWNLOAD_ONLY_FAULTS)[name]
    hub.faults = [Fault("GET", INFO, times=999, **fault)]  # pyright: ignore[reportArgumentType]
    if name == "bad large files":
        assert download() in (0, 1)
        return
    if name in ("a number for the id", "bad dates", "bad tags") and download() == 0:
        # What is not needed may be anything.
        return
    capfd.readouterr()
    assert error_of(capfd, download()).startswith(f"error: {REPO}: ")
    assert written(tmp_path / "home") == set()


@pytest.mark.parametrize("name", FILE_FAULTS)
def test_a_bad_file_is_one_line(hub: HubStandIn, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
    method, fault = FILE_FAULTS[name]
    hub.faults = [Fault(method, FILE, times=999, **fault)]  # pyright: ignore[reportArgumentType]
    assert error_of(capfd, download()).startswith(f"error: {REPO}: ")
    assert written(tmp_path / "home") == set()
    assert not list(tmp_path.rglob("*escaped*"))
    assert not Path("/tmp/escaped").exists()

    hub.faults = []
    assert download() == 0


@pytest.mark.parametrize("name", LISTING_FAULTS)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"/api/models/{REPO}$"),
        ("GET", "/tree/"),
        ("POST", "/validate-yaml"),
        ("POST", "/preupload/"),
        ("POST", "/objects/batch"),
        ("POST", "/commit/"),
    ],
)
def test_a_bad_answer_to_an_upload_is_one_line(
    hub: HubStandIn, converted: Path, capfd: pytest.CaptureFixture[str], method: str, path: str, name: str
) -> None:
    fault = LISTING_FAULTS[name]
    if "edit" in fault and path != f"/api/models/{REPO}$":
        pytest.skip("is about the description of a repository")
    hub.repositories[REPO] = Repository.empty()
    head = hub.repositories[REPO].branches["main"]
    hub.faults = [Fault(method, path, times=999, **fault)]  # pyright: ignore[reportArgumentType]
    status = upload_main(["--path", str(converted), "--repo", REPO])
    if status == 0:
        # The answer was not needed, or the commit was found to be there: then it is whole.
        capfd.readouterr()
        files = hub.repositories[REPO].files()
        assert {path.name for path in converted.iterdir()} <= files.keys()
        return
    error_of(capfd, status)
    is_sent = hub.repositories[REPO].branches["main"] != head
    # An empty list of files may be true, until it is read back.
    assert not is_sent or path == "/commit/" or (path, name) == ("/tree/", "a list")


# How many bad Hubs are drawn in each direction, and from which number on.
HUBS = int(os.environ.get("HELIUM_MLX_FUZZ_HUBS", "24"))
FIRST = int(os.environ.get("HELIUM_MLX_FUZZ_FIRST", "0"))
DOORS = (("GET", INFO), ("GET", FILE), ("HEAD", FILE), ("GET", "."), ("HEAD", "."))
WRITING_DOORS = (
    ("GET", INFO), ("GET", "/tree/"), ("POST", "/validate-yaml"), ("POST", "/preupload/"), ("POST", "/objects/batch"),
    ("PUT", "/lfs/"), ("POST", "/verify"), ("POST", "/commit/"), ("POST", "/repos/create"), ("POST", "."), ("GET", "."),
)  # fmt: skip
NONSENSE: tuple[object, ...] = (
    None, True, 0, -1, 7, 2**63, 10**400, 1.5, float("inf"), float("nan"), "", "x" * 5000, "../../../escaped",
    "\x1b[2J\n", "\ud800", TOKEN, [], [[]], [None], {}, {"": {}}, ["x"] * 3000, {"x": ["y"]}, "f" * 40, "/tmp/escaped",
    "http://[x",
)  # fmt: skip
HEADERS = ("ETag", "X-Linked-Etag", "X-Linked-Size", "X-Repo-Commit", "Location", "Link", "Content-Type",
           "X-Error-Code", "X-Error-Message", "X-HF-Warning", "Retry-After", "Content-Encoding", "Content-Range",
           "X-Xet-Hash", "Set-Cookie", "RateLimit")  # fmt: skip
SAID = ("", "0", "-1", "x" * 300, '"../../escaped"', '"/tmp/escaped"', "f" * 40, '</x>; rel="next"', "gzip", "1e9", "é",
        "bytes 5-1/3", "RepoNotFound", "GatedRepo", "EntryNotFound", "RevisionNotFound", f"for {TOKEN}",
        "/", "a=b; c")  # fmt: skip


def spoilt(rng: random.Random, value: object) -> object:
    """Return JSON in which up to three values, or the whole, are nonsense."""
    for _ in range(rng.choice((1, 1, 3))):
        places: list[tuple[Any, Any]] = []
        waiting: list[Any] = [value]
        while waiting:
            here = waiting.pop()
            inner = here.items() if isinstance(here, dict) else enumerate(here) if isinstance(here, list) else ()
            for key, below in inner:
                places.append((here, key))
                waiting.append(below)
        if not places or rng.random() < 0.1:
            return copy.deepcopy(rng.choice(NONSENSE))
        here, key = rng.choice(places)
        if isinstance(here, dict) and rng.random() < 0.25:
            del here[key]
        else:
            here[key] = copy.deepcopy(rng.choice(NONSENSE))
    return value


def drawn_fault(rng: random.Random, doors: Sequence[tuple[str, str]]) -> Fault:
    """Return a fault of a Hub: another status, body or headers, an answer cut off, or several of these."""
    method, path = rng.choice(doors)
    fault = Fault(method, path, times=rng.choice((1, 2, 999)))
    fault.headers = {name: rng.choice(SAID) for name in rng.sample(HEADERS, rng.choice((0, 0, 1, 2)))}
    kind = rng.randrange(7)
    if kind == 0:
        fault.status, fault.message = rng.choice((201, 204, 206, 299, 302, 304, *range(400, 432), 500, 502, 599)), "no"
    elif kind == 1:
        fault.body = rng.choice((HTML, BOMB, b"", b"[]", b"null", b"{", b"\xff\xfe", b"0" * 5000, rng.randbytes(200)))
    elif kind == 2:
        fault.is_cut = True
    elif kind == 3:
        fault.lose_answer = True
    elif path not in (FILE, "/lfs/", "."):
        fault.edit = lambda answer: spoilt(rng, answer)
    return fault


def require_one_line_or_success(capfd: pytest.CaptureFixture[str], status: int, case: str) -> None:
    out, err = capfd.readouterr()
    assert status in (0, 1), f"{case}: {err}"
    assert "Traceback" not in err, f"{case}: {err}"
    assert TOKEN not in out + err, case
    assert "\x1b" not in err, case
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == status, f"{case}: {err}"
    assert all(len(line) < 1000 and line.isprintable() for line in errors), f"{case}: {err}"


def test_hubs_drawn_at_random_give_a_checkpoint_or_one_line(
    hub: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # None of them is silent.
    monkeypatch.setenv("HELIUM_MLX_HUB_TIMEOUT", "60")
    for number in range(FIRST, FIRST + HUBS):
        rng = random.Random(number)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / f"cache{number}"))
        hub.faults = [drawn_fault(rng, DOORS) for _ in range(rng.choice((1, 1, 2)))]
        case = f"hub {number}: {hub.faults}"
        require_one_line_or_success(capfd, download(), case)
        hub.faults = []
        assert download() == 0, case
        capfd.readouterr()
        shutil.rmtree(tmp_path / f"cache{number}")
    assert not list(tmp_path.rglob("*escaped*"))
    assert not Path("/tmp/escaped").exists()


def test_hubs_drawn_at_random_hold_an_upload_or_give_one_line(
    hub: HubStandIn, converted: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # The stand-in closes the connection where a client that it misled sends what it does not know.
    monkeypatch.setattr("socketserver.BaseServer.handle_error", lambda *_: None)
    arguments = ["--path", str(converted), "--repo", REPO]
    # None of them is silent.
    monkeypatch.setenv("HELIUM_MLX_HUB_TIMEOUT", "60")
    for number in range(FIRST, FIRST + HUBS):
        rng = random.Random(number)
        hub.repositories = {REPO: Repository.empty()} if rng.random() < 0.7 else {}
        hub.faults = [drawn_fault(rng, WRITING_DOORS) for _ in range(rng.choice((1, 1, 2)))]
        case = f"hub {number}: {hub.faults}"
        status = upload_main(arguments)
        require_one_line_or_success(capfd, status, case)
        hub.faults = []
        # What is told as there is whole, and what is not can be gone on with.
        held = hub.repositories[REPO].files().keys() if REPO in hub.repositories else set()
        assert status or {path.name for path in converted.iterdir()} <= held, case
        # A Hub may leave out the record by which an upload is known again.
        assert upload_main([*arguments, "--overwrite"]) == 0, case
        capfd.readouterr()
        assert {path.name for path in converted.iterdir()} <= hub.repositories[REPO].files().keys(), case


def failing_push(subject: HeliumForCausalLM | HeliumTokenizer, capfd: pytest.CaptureFixture[str]) -> str | None:
    """Return the one line of the error that a push ends with; None where it ends well."""
    try:
        address = subject.push_to_hub(REPO)
    except UploadError as error:
        said = str(error)
        out, err = capfd.readouterr()
        assert said.startswith(f"{REPO}: ")
        assert said.isprintable()
        assert len(said) < 1000
        assert TOKEN not in said + out + err
        assert "\x1b" not in err
        return said
    assert address.isprintable()
    return None


@pytest.fixture(scope="module")
def pushed() -> dict[str, HeliumForCausalLM | HeliumTokenizer]:
    config = HeliumConfig(48, 32, 32, 2, 2)
    return {"model": HeliumForCausalLM(config), "tokenizer": HeliumTokenizer.from_pretrained("demo")}


Pushed = dict[str, HeliumForCausalLM | HeliumTokenizer]


@pytest.mark.parametrize("kind", ["model", "tokenizer"])
@pytest.mark.parametrize(("method", "path"), [("POST", "/repos/create"), ("POST", "/preupload/"), ("POST", "/commit/")])
def test_a_bad_answer_to_a_push_is_one_line(
    hub: HubStandIn, pushed: Pushed, capfd: pytest.CaptureFixture[str], kind: str, method: str, path: str
) -> None:
    for name, fault in LISTING_FAULTS.items():
        if "edit" in fault:
            continue
        hub.repositories[REPO] = Repository.empty()
        hub.faults = [Fault(method, path, times=999, **fault)]  # pyright: ignore[reportArgumentType]
        if failing_push(pushed[kind], capfd) is None:
            assert hub.repositories[REPO].files(), name
    hub.faults = []
    assert failing_push(pushed[kind], capfd) is None


@pytest.mark.parametrize("kind", ["model", "tokenizer"])
def test_each_failure_of_a_push_has_words_of_its_own(
    hub: HubStandIn, pushed: Pushed, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    hub.repositories[REPO] = Repository.empty()
    statuses = {
        401: "not accept the token",
        403: "may not write",
        404: "no such repository",
        429: "a pause",
        500: "failed",
    }
    for status, words in statuses.items():
        hub.faults = [Fault("POST", "/commit/", times=999, status=status, message=f"of {TOKEN}")]
        assert words in (failing_push(pushed[kind], capfd) or ""), status
    expected = {
        "redirected to a file": "redirects to where nothing is", "silent": "was not reached or broke off",
        "html": "answered what no Hub does",
    }  # fmt: skip
    for name, words in expected.items():
        hub.faults = [Fault("POST", "/commit/", times=999, **LISTING_FAULTS[name])]  # pyright: ignore[reportArgumentType]
        hub.repositories[REPO] = Repository.empty()
        assert words in (failing_push(pushed[kind], capfd) or ""), name
    for address in (7, None, ["x"]):
        hub.faults = [Fault("POST", "/commit/", times=999, edit=edited(commitUrl=address))]
        hub.repositories[REPO] = Repository.empty()
        assert "answered what no Hub does" in (failing_push(pushed[kind], capfd) or "")
    asked = len(hub.requests)
    for wrong in ("", "a/b/c", "some body/tiny", "../tiny"):
        with pytest.raises(UsageError, match=r"^repo_id is "):
            pushed[kind].push_to_hub(wrong)
    set_token(monkeypatch, None)
    with pytest.raises(UploadError, match="there is no token of the Hub on this machine"):
        pushed[kind].push_to_hub(REPO)
    assert len(hub.requests) == asked


def test_a_tokenizer_is_pushed_as_it_is_saved(hub: HubStandIn, pushed: Pushed, tmp_path: Path) -> None:
    tokenizer = pushed["tokenizer"]
    tokenizer.save_pretrained(tmp_path / "saved")
    commit = tokenizer.push_to_hub("somebody/new", private=True, commit_message="Mine").rpartition("/")[2]
    assert hub.repositories["somebody/new"].branches["main"] == commit
    assert hub.uploaded["somebody/new"] == {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}


def test_a_page_that_never_ends_is_left(
    hub: HubStandIn, converted: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.repositories[REPO] = Repository.of_files({"x": b""})
    monkeypatch.setattr("helium_mlx.publishing.repository._MAX_ENTRIES", 20)
    link = {"Link": f'<{hub.url}/api/models/{REPO}/tree/main?cursor=x>; rel="next"'}
    hub.faults = [Fault("GET", "/tree/", headers=link, times=10**9)]
    assert "more than 20 files" in error_of(capfd, upload_main(["--path", str(converted), "--repo", REPO]))


def test_a_cookie_that_cannot_be_sent_back_is_forgotten(hub: HubStandIn, capfd: pytest.CaptureFixture[str]) -> None:
    hub.faults = [Fault("GET", INFO, status=418, headers={"Set-Cookie": "a=é"})]
    assert "418" in error_of(capfd, download())
    assert download() == 0


def test_a_large_file_that_was_not_asked_for_is_one_line(
    hub: HubStandIn, converted: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def renamed(answer: dict[str, Any]) -> object:
        return {**answer, "objects": [{**answer["objects"][0], "oid": "another"}]}

    hub.repositories[REPO] = Repository.empty()
    hub.faults = [Fault("POST", "/objects/batch", times=999, edit=renamed)]
    status = upload_main(["--path", str(converted), "--repo", REPO])
    assert "answered what no Hub does" in error_of(capfd, status)


def test_a_file_of_the_hubs_that_is_named_as_the_token_is_not_shown(
    hub: HubStandIn, converted: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.repositories[REPO] = Repository.of_files({TOKEN: b"", "x\x1b[2J": b""})
    assert "holds ***, x" in error_of(capfd, upload_main(["--path", str(converted), "--repo", REPO]))


def test_an_answer_that_is_too_long_is_left(
    hub: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("helium_mlx.files.hub_client.MAX_ANSWER_BYTES", 1000)
    hub.faults = [Fault("GET", INFO, body=json.dumps({"x": "y" * 10_000}).encode())]
    assert "more than 1000 bytes" in error_of(capfd, download())


def test_a_warning_of_the_server_is_shown_without_token_and_control_characters(hub: HubStandIn, tmp_path: Path) -> None:
    token = "hf_" + "AbCdEfGhIj" * 3
    hub.faults = [Fault("GET", INFO, headers={"X-HF-Warning": f"topic; old {TOKEN} and {token} \x1b[2J" + "x" * 3000})]
    arguments = ("generate", "--model", REPO, "--prompt", "Bonjour", "-m", "2")
    result = run(hub.url, tmp_path / "home", *arguments, HELIUM_MLX_HUB_TIMEOUT="60")
    assert result.returncode == 0, result.stderr
    err = result.stderr
    assert "old *** and ***" in err
    assert TOKEN not in err
    assert token not in err
    assert "\x1b" not in err
    assert len(err) < 2000


def test_a_file_that_unpacks_to_more_than_was_said_is_left_early(
    hub: HubStandIn, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bomb = gzip.compress(bytes(400_000_000), 1)
    hub.faults = [Fault("GET", f"{FILE}.*config.json", body=bomb, headers={"Content-Encoding": "gzip"}, times=999)]
    assert "far more than was said" in error_of(capfd, download())
    assert "config.json" not in written(tmp_path / "home")
    # One part of the client's may come before anybody looks.
    assert sum(path.stat().st_size for path in (tmp_path / "home").rglob("*")) < 50_000_000
    hub.faults = []
    assert download() == 0
