import json
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from hub_standin import Fault, HubStandIn, Repository, serve
from hub_standin.client import TOKEN, Clock, set_token, use
from waiting import wait_for

import helium_mlx
from helium_mlx.errors import UploadError, UsageError
from helium_mlx.files.hub_client import prepare_session
from helium_mlx.publishing.upload import upload

REPO = "somebody/tiny"


@pytest.fixture(scope="session")
def converted_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo in 4 bits, in two weight files."""
    path = tmp_path_factory.mktemp("converted") / "tiny"
    helium_mlx.convert("demo", str(path), quantize=True, max_shard_size="600kB")
    assert len(list(path.glob("*.safetensors"))) == 2
    return path


@pytest.fixture
def converted(converted_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(converted_once, tmp_path / "tiny"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubStandIn]:
    with serve({}) as hub:
        hub.clock = use(hub, monkeypatch, tmp_path / "home")  # pyright: ignore[reportAttributeAccessIssue]
        yield hub


def weights(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.glob("*.safetensors"))}


def commits(hub: HubStandIn) -> int:
    """How many commits there are beside the first, which the Hub makes."""
    return len(hub.repositories[REPO].commits) - 1


def changes(hub: HubStandIn) -> list[tuple[str, str]]:
    return [call for call in hub.calls if call[0] not in ("GET", "HEAD")]


def test_a_new_repository_holds_the_directory_in_one_commit(hub: HubStandIn, converted: Path) -> None:
    report = upload(converted, REPO)
    files = hub.repositories[REPO].files()
    assert sorted(files) == sorted(path.name for path in converted.iterdir())
    as_they_are = {path.name: path.read_bytes() for path in converted.iterdir()}
    differing = {name for name in files if files[name] != as_they_are[name]}
    assert differing == {"README.md", "conversion.json"}
    assert commits(hub) == 1
    assert report.commit == hub.repositories[REPO].branches["main"]
    assert report.is_new
    assert not report.is_unchanged


def test_weights_go_to_large_file_storage_and_cross_the_network_once(hub: HubStandIn, converted: Path) -> None:
    upload(converted, REPO)
    assert hub.sent("PUT", "/lfs/") == sum(map(len, weights(converted).values()))
    assert sorted(hub.repositories[REPO].lfs.values()) == sorted(weights(converted).values())
    commit = hub.repositories[REPO].find("main")
    assert commit is not None
    assert {name for name, blob in commit.files.items() if blob.is_lfs} == weights(converted).keys()


def test_large_files_may_be_asked_for_in_parts(hub: HubStandIn, converted: Path) -> None:
    hub.part_size = 100_000
    upload(converted, REPO)
    assert hub.times("PUT", "/part/") > 9
    assert weights(converted).items() <= hub.repositories[REPO].files().items()


def test_a_second_upload_sends_nothing(hub: HubStandIn, converted: Path) -> None:
    first = upload(converted, REPO)
    hub.calls.clear()
    second = upload(converted, REPO)
    assert changes(hub) == []
    assert second.is_unchanged
    assert second.commit == first.commit


def test_only_what_changed_is_sent(hub: HubStandIn, converted: Path, tmp_path: Path) -> None:
    upload(converted, REPO)
    helium_mlx.convert("demo", str(tmp_path / "other"), quantize=True, max_shard_size="600kB", dtype="float16")
    hub.received.clear()
    report = upload(tmp_path / "other", REPO)
    unchanged = {file.name for file in report.files if not file.is_sent}
    assert {"tokenizer.json", "tokenizer.model", "generation_config.json"} <= unchanged
    assert hub.sent("PUT", "/lfs/") == sum(map(len, weights(tmp_path / "other").values()))
    assert commits(hub) == 2


def test_weights_of_an_earlier_upload_go_in_the_same_commit(hub: HubStandIn, converted: Path, tmp_path: Path) -> None:
    upload(converted, REPO)
    helium_mlx.convert("demo", str(tmp_path / "whole"), quantize=True)
    hub.repositories[REPO].commit(
        "main", [{"key": "header", "value": {"summary": "notes"}},
                 {"key": "file", "value": {"path": "notes.txt", "content": "eA=="}}], create_pr=False
    )  # fmt: skip
    report = upload(tmp_path / "whole", REPO)
    assert set(report.removed) == {*weights(converted), "model.safetensors.index.json"}
    assert sorted(hub.repositories[REPO].files()) == sorted(
        [*(p.name for p in (tmp_path / "whole").iterdir()), "notes.txt"]
    )
    assert commits(hub) == 3


def test_progress_ends_at_all_bytes(hub: HubStandIn, converted: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = upload(converted, REPO, on_progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (report.sent_bytes, report.sent_bytes)
    done = [done for done, _ in seen]
    assert done == sorted(done)
    # A file counts while it is sent, not only when it has arrived.
    arrived = {0}
    for file in sorted((file for file in report.files if file.is_sent), key=lambda file: -file.size):
        arrived.add(max(arrived) + file.size)
    assert set(done) - arrived


def test_a_connection_that_is_cut_once_costs_one_more_run_at_most(hub: HubStandIn, converted: Path) -> None:
    hub.faults = [Fault("PUT", "/lfs/", cut_after=50_000)]
    # Newer clients try again by themselves.
    with suppress(UploadError):
        upload(converted, REPO)
    upload(converted, REPO)
    assert commits(hub) == 1
    assert weights(converted).items() <= hub.repositories[REPO].files().items()


def test_an_upload_that_was_cut_off_goes_on_with_what_is_missing(hub: HubStandIn, converted: Path) -> None:
    first, second = sorted(weights(converted).values(), key=len, reverse=True)
    hub.faults = _all_but_the_first_put()
    with pytest.raises(UploadError, match="run the same command again") as caught:
        upload(converted, REPO)
    assert "\n" not in str(caught.value)
    assert commits(hub) == 0
    assert [len(data) for data in hub.repositories[REPO].lfs.values()] == [len(first)]

    hub.faults = []
    hub.received.clear()
    upload(converted, REPO)
    assert hub.sent("PUT", "/lfs/") == len(second)
    assert commits(hub) == 1


def _all_but_the_first_put() -> list[Fault]:
    """Faults that let one PUT through, and cut all tries of the next."""
    return [Fault("PUT", "/lfs/"), *(Fault("PUT", "/lfs/", cut_after=20_000) for _ in range(6))]


def test_waiting_between_tries_is_bounded(hub: HubStandIn, converted: Path) -> None:
    hub.faults = [Fault("PUT", "/lfs/", status=503, times=100)]
    with pytest.raises(UploadError, match=r"the Hub failed .503"):
        upload(converted, REPO)
    clock: Clock = hub.clock  # pyright: ignore[reportAttributeAccessIssue]
    assert 5 <= hub.times("PUT", "/lfs/") <= 10
    assert 10 < sum(clock.waits) < 60


def test_a_server_that_fails_once_is_asked_again(hub: HubStandIn, converted: Path) -> None:
    hub.faults = [Fault("PUT", "/lfs/", status=500), Fault("POST", "/objects/batch", status=502)]
    upload(converted, REPO)
    assert commits(hub) == 1


def test_a_commit_that_fails_leaves_the_repository_as_it_was(hub: HubStandIn, converted: Path) -> None:
    hub.faults = [Fault("POST", "/commit/", status=500)]
    with pytest.raises(UploadError, match=r"the Hub failed .500"):
        upload(converted, REPO)
    assert hub.repositories[REPO].files() == {}
    hub.received.clear()
    upload(converted, REPO)
    assert hub.sent("PUT", "/lfs/") == 0
    assert weights(converted).items() <= hub.repositories[REPO].files().items()


def test_a_commit_whose_answer_got_lost_is_found(hub: HubStandIn, converted: Path) -> None:
    hub.faults = [Fault("POST", "/commit/", lose_answer=True)]
    report = upload(converted, REPO)
    assert commits(hub) == 1
    assert report.commit == hub.repositories[REPO].branches["main"]


def test_a_slow_server_is_waited_for(hub: HubStandIn, converted: Path) -> None:
    hub.faults = [Fault("POST", "/commit/", is_silent=True)]
    prepare_session(timeout=60_000)
    with ThreadPoolExecutor() as pool:
        report = pool.submit(upload, converted, REPO)
        wait_for(lambda: hub.times("POST", "/commit/") == 1)
        assert not report.done()
        hub.goes_on.set()
        report.result()
    assert commits(hub) == 1


def test_a_silent_server_is_given_up_and_nothing_is_done_twice(hub: HubStandIn, converted: Path) -> None:
    hub.faults = [Fault("POST", "/commit/", is_silent=True)]
    prepare_session(timeout=60)
    with pytest.raises(UploadError, match=r"broke off \(.*timed out.*run the same command again"):
        upload(converted, REPO)
    assert commits(hub) == 0
    hub.goes_on.set()
    wait_for(lambda: commits(hub) == 1)
    assert upload(converted, REPO).is_unchanged
    assert commits(hub) == 1


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"/api/models/{REPO}$"),
        ("GET", "/revision/"),
        ("GET", "/tree/"),
        ("HEAD", "/resolve/"),
        ("GET", "/resolve/"),
        ("GET", "/refs$"),
        ("POST", "/branch/"),
        ("POST", "/validate-yaml"),
        ("POST", "/preupload/"),
        ("POST", "/objects/batch"),
        ("PUT", "/lfs/"),
        ("POST", "/commit/"),
    ],
)
def test_silence_is_given_up_whatever_was_asked(hub: HubStandIn, converted: Path, method: str, path: str) -> None:
    record = b'{"versions": {"helium_mlx": "0"}, "files": {}}'
    hub.repositories[REPO] = Repository.of_files({"conversion.json": record})
    hub.faults = [Fault(method, path, is_silent=True, times=99)]
    prepare_session(timeout=60)
    branch = {"/branch/": "new", "/revision/": "v1"}.get(path)
    with pytest.raises(UploadError, match="was not reached or broke off"):
        upload(converted, REPO, revision=branch, create_pr=path == "/refs$")
    # The client may have given up before the stand-in looked at what came.
    wait_for(lambda: hub.faults[0].times < 99)
    assert commits(hub) == 0


def test_silence_at_a_new_repository_is_given_up(hub: HubStandIn, converted: Path) -> None:
    hub.faults = [Fault("POST", "/repos/create", is_silent=True)]
    prepare_session(timeout=60)
    with pytest.raises(UploadError, match=r"broke off \(.*timed out"):
        upload(converted, REPO)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (401, "does not accept the token .* `hf auth login`"),
        (403, "may not write there .403, no .*; take one with write access"),
        (404, "check the name"),
        (409, "being changed by somebody else"),
        (429, "asks for a pause"),
        (418, "refused the request .418"),
    ],
)
@pytest.mark.parametrize("path", ["/preupload/", "/objects/batch", "/commit/"])
def test_each_refusal_is_one_line_that_says_what_to_do(
    hub: HubStandIn, converted: Path, status: int, expected: str, path: str
) -> None:
    hub.faults = [Fault("POST", path, status=status, message=f"no {{braces}} for {TOKEN}", times=9)]
    with pytest.raises(UploadError, match=expected) as caught:
        upload(converted, REPO)
    assert str(caught.value).startswith(f"{REPO}: ")
    assert "\n" not in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert hub.repositories[REPO].files() == {}


@pytest.mark.parametrize("status", [401, 403, 500])
def test_a_repository_that_cannot_be_made_is_one_line(hub: HubStandIn, converted: Path, status: int) -> None:
    hub.faults = [Fault("POST", "/repos/create", status=status, message="no")]
    with pytest.raises(UploadError, match=rf"{status}, no") as caught:
        upload(converted, REPO)
    assert "\n" not in str(caught.value)
    assert hub.repositories == {}


def test_a_repository_that_somebody_makes_meanwhile_is_used(hub: HubStandIn, converted: Path) -> None:
    hub.repositories[REPO] = Repository.empty()
    hub.faults = [Fault("GET", f"/api/models/{REPO}$", status=404, headers={"X-Error-Code": "RepoNotFound"})]
    upload(converted, REPO)
    assert hub.times("POST", "/repos/create") == 1
    assert weights(converted).items() <= hub.repositories[REPO].files().items()


def test_a_commit_that_somebody_makes_meanwhile_is_not_undone(hub: HubStandIn, converted: Path) -> None:
    hub.repositories[REPO] = Repository.empty()
    line = {"key": "file", "value": {"path": "notes.txt", "content": "eA=="}}
    header = {"key": "header", "value": {"summary": "meanwhile"}}

    def meanwhile(done: int, total: int) -> None:
        if done == total:
            hub.repositories[REPO].commit("main", [header, line], create_pr=False)

    with pytest.raises(UploadError, match="changed by somebody else meanwhile"):
        upload(converted, REPO, on_progress=meanwhile)
    assert hub.repositories[REPO].files() == {"notes.txt": b"x"}


def test_without_a_network_that_is_said(hub: HubStandIn, converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UploadError, match=r"the Hub at http://127.0.0.1:9 was not reached"):
        upload(converted, REPO)


def test_offline_is_said(hub: HubStandIn, converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UploadError, match="HF_HUB_OFFLINE is set"):
        upload(converted, REPO)


def test_without_a_token_nothing_is_asked(hub: HubStandIn, converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_token(monkeypatch, None)
    with pytest.raises(UploadError, match=r"no token .* run `hf auth login`, or set HF_TOKEN"):
        upload(converted, REPO)
    assert hub.requests == []


def test_a_token_that_the_hub_does_not_know_is_said(hub: HubStandIn, converted: Path) -> None:
    hub.tokens = {"another"}
    with pytest.raises(UploadError, match="does not accept the token"):
        upload(converted, REPO)


def test_a_token_that_may_only_read_is_said(hub: HubStandIn, converted: Path) -> None:
    hub.read_only = {TOKEN}
    with pytest.raises(UploadError, match="may not write there"):
        upload(converted, REPO)


def test_a_dry_run_changes_nothing_and_needs_no_token(
    hub: HubStandIn, converted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_token(monkeypatch, None)
    before = upload(converted, REPO, dry_run=True)
    assert (before.is_new, before.commit, before.dry_run) == (True, None, True)
    assert all(file.is_sent for file in before.files)
    assert changes(hub) == []

    set_token(monkeypatch, TOKEN)
    sent = upload(converted, REPO)
    hub.calls.clear()
    set_token(monkeypatch, None)
    after = upload(converted, REPO, dry_run=True)
    assert after.is_unchanged
    assert [(file.name, file.sha256) for file in after.files] == [(file.name, file.sha256) for file in sent.files]
    assert changes(hub) == []


def test_a_repository_with_other_content_is_left_alone(hub: HubStandIn, converted: Path) -> None:
    others = {"model.safetensors": b"another", "notes.txt": b"x", "conversion.json": b'{"files": {}}'}
    hub.repositories[REPO] = Repository.of_files(others)
    with pytest.raises(
        UploadError, match=r"holds conversion.json, model.safetensors, notes.txt, which no .*overwrite=True"
    ):
        upload(converted, REPO)
    assert changes(hub) == []


def test_overwrite_replaces_weights_and_leaves_the_rest(hub: HubStandIn, converted: Path) -> None:
    hub.repositories[REPO] = Repository.of_files(
        {"model.safetensors": b"another", "notes.txt": b"x", "vocab.json": b"{}"}
    )
    report = upload(converted, REPO, overwrite=True)
    assert report.removed == ("model.safetensors",)
    files = hub.repositories[REPO].files()
    assert {"notes.txt", "vocab.json"} <= files.keys()
    assert "model.safetensors" not in files


def test_a_record_that_names_other_files_removes_none_of_them(hub: HubStandIn, converted: Path) -> None:
    record = {"versions": {"helium_mlx": "0"}, "files": {"notes.txt": "", "model.safetensors": "", "../x": ""}}
    others = {"model.safetensors": b"another", "notes.txt": b"x", "conversion.json": json.dumps(record).encode()}
    hub.repositories[REPO] = Repository.of_files(others)
    assert upload(converted, REPO).removed == ("model.safetensors",)
    assert "notes.txt" in hub.repositories[REPO].files()


def test_private_makes_a_private_repository(hub: HubStandIn, converted: Path) -> None:
    upload(converted, REPO, private=True)
    assert hub.repositories[REPO].private
    assert upload(converted, REPO, private=True).is_unchanged


def test_private_is_no_wish_for_a_public_repository(hub: HubStandIn, converted: Path) -> None:
    hub.repositories[REPO] = Repository.empty()
    with pytest.raises(UploadError, match="there already, and public"):
        upload(converted, REPO, private=True)
    assert changes(hub) == []


def test_a_revision_is_a_branch_made_if_need_be(hub: HubStandIn, converted: Path) -> None:
    report = upload(converted, REPO, revision="4bit")
    assert report.revision == "4bit"
    assert hub.repositories[REPO].files("main") == {}
    assert weights(converted).items() <= hub.repositories[REPO].files("4bit").items()
    assert upload(converted, REPO, revision="4bit").is_unchanged


def test_a_branch_like_main_costs_no_commit(hub: HubStandIn, converted: Path) -> None:
    upload(converted, REPO)
    upload(converted, REPO, revision="stable")
    branches = hub.repositories[REPO].branches
    assert branches["stable"] == branches["main"]


def test_a_pull_request_leaves_the_branch_alone(hub: HubStandIn, converted: Path) -> None:
    hub.repositories[REPO] = Repository.empty()
    report = upload(converted, REPO, create_pr=True)
    assert report.pull_request == "refs/pr/1"
    assert hub.repositories[REPO].files() == {}
    assert weights(converted).items() <= hub.repositories[REPO].files("refs/pr/1").items()


def test_a_pull_request_is_made_once(hub: HubStandIn, converted: Path) -> None:
    hub.repositories[REPO] = Repository.empty()
    first = upload(converted, REPO, create_pr=True)
    hub.calls.clear()
    second = upload(converted, REPO, create_pr=True)
    assert changes(hub) == []
    assert (second.pull_request, second.commit) == (first.pull_request, first.commit)
    assert second.is_unchanged


def test_a_pull_request_can_be_gone_on_with(hub: HubStandIn, converted: Path, tmp_path: Path) -> None:
    hub.repositories[REPO] = Repository.empty()
    upload(converted, REPO, create_pr=True)
    helium_mlx.convert("demo", str(tmp_path / "whole"), quantize=True)
    report = upload(tmp_path / "whole", REPO, revision="refs/pr/1")
    assert hub.repositories[REPO].pull_requests == {"refs/pr/1": report.commit}
    assert "model.safetensors" in hub.repositories[REPO].files("refs/pr/1")


@pytest.mark.parametrize("revision", ["", "a b", "../x", "-d", "x.lock"])
def test_a_revision_that_is_no_name_is_wrong_usage_and_nothing_is_asked(
    hub: HubStandIn, converted: Path, revision: str
) -> None:
    with pytest.raises(UsageError, match=r"^revision is '.*', which git takes for no branch"):
        upload(converted, REPO, revision=revision)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"revision": "0" * 40}, "which cannot change"),
        ({"revision": "refs/pr/7"}, "has no pull request refs/pr/7"),
        ({"revision": "nowhere", "create_pr": True}, "has no branch nowhere"),
    ],
)
def test_a_revision_that_cannot_be_written_to_is_named(
    hub: HubStandIn, converted: Path, options: dict[str, object], expected: str
) -> None:
    hub.repositories[REPO] = Repository.empty()
    with pytest.raises((UploadError, UsageError), match=expected):
        upload(converted, REPO, **options)  # pyright: ignore[reportArgumentType]
    assert changes(hub) == []


def test_a_pull_request_needs_a_repository(hub: HubStandIn, converted: Path) -> None:
    with pytest.raises(UploadError, match="drop create_pr=True"):
        upload(converted, REPO, create_pr=True)
    assert changes(hub) == []


@pytest.mark.parametrize("name", ["tiny", "", "a/b/c", "some body/tiny", "somebody/-", "somebody/tiny.git", "../tiny"])
def test_a_name_that_is_no_repository_is_refused(hub: HubStandIn, converted: Path, name: str) -> None:
    with pytest.raises(UsageError, match="is not a name of a repository"):
        upload(converted, name)
    assert hub.requests == []


def test_what_comes_back_otherwise_is_an_error(
    hub: HubStandIn, converted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = Repository.commit

    def lossy(self: Repository, revision: str, lines: list, *, create_pr: bool) -> tuple[str, str]:
        kept = [line for line in lines if line["value"].get("path") != "config.json"]
        return commit(self, revision, kept, create_pr=create_pr)

    monkeypatch.setattr(Repository, "commit", lossy)
    with pytest.raises(UploadError, match=r"read back, config.json is not what was sent"):
        upload(converted, REPO)


def test_a_card_that_the_hub_refuses_is_said(hub: HubStandIn, converted: Path) -> None:
    hub.faults = [Fault("POST", "/validate-yaml", status=400, message="license must be one of")]
    with pytest.raises(UploadError, match=r"README\.md") as caught:
        upload(converted, REPO)
    assert "\n" not in str(caught.value)
    assert changes(hub) == [("POST", "/api/validate-yaml")]


def test_what_the_hub_says_of_a_card_is_in_one_line(hub: HubStandIn, converted: Path) -> None:
    said = {"errors": [{"message": f'"license" must be one of\n[a, b] {TOKEN}'}, 7, {}], "warnings": []}
    hub.faults = [Fault("POST", "/validate-yaml", body=json.dumps(said).encode())]
    with pytest.raises(
        UploadError, match=r'refuses the metadata of README.md \("license" must be one of \[a, b\] \*\*\*'
    ):
        upload(converted, REPO)
    said = {"errors": [], "warnings": [{"message": f"empty\x1b[2J {TOKEN}"}]}
    hub.faults = [Fault("POST", "/validate-yaml", body=json.dumps(said).encode(), times=2)]
    assert upload(converted, REPO).warnings == ("the Hub says of README.md: empty\\x1b[2J ***",)


def test_a_conversion_publishes_what_it_made(hub: HubStandIn, tmp_path: Path) -> None:
    report = helium_mlx.convert("demo", str(tmp_path / "made"), quantize=True, upload_repo=REPO)
    assert report.verification
    assert weights(tmp_path / "made").items() <= hub.repositories[REPO].files().items()


def test_a_conversion_whose_upload_fails_is_kept_and_says_how_to_go_on(hub: HubStandIn, tmp_path: Path) -> None:
    hub.faults = [Fault("POST", "/commit/", status=500)]
    made = tmp_path / "it's made"
    with pytest.raises(UploadError) as caught:
        helium_mlx.convert("demo", str(made), quantize=True, upload_repo=REPO)
    again = re.search(r"continue with: helium-mlx upload (.*)\)$", str(caught.value))
    assert again
    import shlex

    from helium_mlx.upload import main

    assert main(shlex.split(again[1])) == 0
    assert weights(made).items() <= hub.repositories[REPO].files().items()


@pytest.mark.parametrize(
    ("repo", "options", "expected"),
    [
        ("tiny", {}, "is not a name of a repository"),
        (REPO, {"verify": False}, "drop verify=False, or upload_repo"),
    ],
)
def test_an_upload_that_is_bound_to_fail_costs_no_conversion(
    hub: HubStandIn, tmp_path: Path, repo: str, options: dict[str, bool], expected: str
) -> None:
    with pytest.raises((UploadError, UsageError), match=expected):
        helium_mlx.convert("demo", str(tmp_path / "made"), upload_repo=repo, **options)  # pyright: ignore[reportArgumentType]
    assert not (tmp_path / "made").exists()
