"""A Hub that misbehaves, in both directions: one line, status 1, no token, nothing half-written, and an end."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_standin import COMMIT, Fault, HubStandIn, Repository, serve
from hub_standin.client import TOKEN, run, use

import helium_mlx
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


def test_a_page_that_never_ends_is_left(
    hub: HubStandIn, converted: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.repositories[REPO] = Repository.of_files({"x": b""})
    monkeypatch.setattr("helium_mlx.publishing.repository._MAX_ENTRIES", 20)
    link = {"Link": f'<{hub.url}/api/models/{REPO}/tree/main?cursor=x>; rel="next"'}
    hub.faults = [Fault("GET", "/tree/", headers=link, times=10**9)]
    assert "more than 20 files" in error_of(capfd, upload_main(["--path", str(converted), "--repo", REPO]))


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
