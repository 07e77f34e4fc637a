"""The command, in processes of its own, whose Hub is the stand-in by HF_ENDPOINT."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_standin import Fault, HubStandIn, serve
from hub_standin.client import TOKEN, run, use

import helium_mlx
from helium_mlx.convert import main as convert_main
from helium_mlx.files.hashes import file_hashes
from helium_mlx.upload import main

REPO = "somebody/tiny"


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("upload") / "tiny"
    helium_mlx.convert("demo", str(path), quantize=True)
    return path


@pytest.fixture
def hub() -> Iterator[HubStandIn]:
    with serve({}) as hub:
        yield hub


@pytest.fixture
def hub_here(hub: HubStandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> HubStandIn:
    """The stand-in, and the client of this process pointed at it."""
    use(hub, monkeypatch, tmp_path / "home")
    return hub


def told_by(directory: Path) -> str:
    model, tokenizer = helium_mlx.load(str(directory))
    return helium_mlx.generate(model, tokenizer, "Once upon a time", max_tokens=8).strip()


def test_what_is_uploaded_is_what_others_load(hub: HubStandIn, converted: Path, tmp_path: Path) -> None:
    home, other = tmp_path / "home", tmp_path / "other"
    story = ("--prompt", "Once upon a time", "-m", "8")
    sent = run(hub.url, home, "upload", "--path", str(converted), "--repo", REPO)
    assert sent.returncode == 0, sent.stderr
    commit = sent.stdout.strip().rpartition("/")[2]
    assert sent.stdout.strip() == f"{hub.url}/{REPO}/commit/{commit}"
    assert "read back" in sent.stderr
    there = run(hub.url, home, "generate", "--model", REPO, *story)
    assert there.returncode == 0, there.stderr
    assert there.stdout.strip() == told_by(converted)

    # Another conversion takes its place on main; the first stays what its commit names.
    helium_mlx.convert("demo", str(other), quantize=True, q_bits=2)
    assert run(hub.url, home, "upload", "--path", str(other), "--repo", REPO).returncode == 0
    pinned = run(hub.url, tmp_path / "fresh", "generate", "--model", REPO, "--revision", commit, *story)
    assert pinned.stdout == there.stdout
    newest = run(hub.url, tmp_path / "fresh", "generate", "--model", REPO, *story)
    assert newest.stdout.strip() == told_by(other) != told_by(converted)

    asked = len(hub.requests)
    offline = run(hub.url, tmp_path / "fresh", "generate", "--model", REPO, *story, HF_HUB_OFFLINE="1")
    assert offline.stdout == newest.stdout
    assert len(hub.requests) == asked


def test_xet_which_the_client_takes_by_itself_sends_the_weights(
    hub: HubStandIn, converted: Path, tmp_path: Path
) -> None:
    arguments = ("upload", "--path", str(converted), "--repo", REPO)
    sent = run(hub.url, tmp_path / "home", *arguments, HF_HUB_DISABLE_XET="0")
    assert sent.returncode == 0, sent.stderr
    assert hub.times("POST", "/v1/shards") == 1
    assert hub.times("PUT", "/lfs/") == 0
    commit = hub.repositories[REPO].find("main")
    assert commit is not None
    weights = converted / "model.safetensors"
    assert commit.files["model.safetensors"].sha256 == file_hashes([weights])["model.safetensors"]
    asked = len(hub.calls)
    again = run(hub.url, tmp_path / "home", *arguments, HF_HUB_DISABLE_XET="0")
    assert "nothing to send" in again.stderr
    assert all(method in ("GET", "HEAD") for method, _ in hub.calls[asked:])


def test_what_xet_refuses_is_one_line_without_the_token(hub: HubStandIn, converted: Path, tmp_path: Path) -> None:
    hub.faults = [Fault("GET", "/xet-write-token/", status=403, message=f"not with {TOKEN}", times=99)]
    arguments = ("upload", "--path", str(converted), "--repo", REPO)
    result = run(hub.url, tmp_path / "home", *arguments, HF_HUB_DISABLE_XET="0")
    assert result.returncode == 1
    assert len([line for line in result.stderr.splitlines() if line.startswith("error: ")]) == 1
    assert TOKEN not in result.stderr + result.stdout
    assert hub.repositories[REPO].files() == {}


def test_a_dry_run_lists_files_sizes_and_hashes(
    hub_here: HubStandIn, converted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--path", str(converted), "--repo", REPO, "--dry-run"]) == 0
    out, err = capsys.readouterr()
    rows = [line.split() for line in out.splitlines()]
    assert {row[3] for row in rows} == {path.name for path in converted.iterdir()}
    assert ["send", "model.safetensors"] in [[row[1], row[3]] for row in rows]
    assert all(row[0].isdigit() and len(row[2]) == 64 for row in rows)
    assert "to a new public repository; nothing was sent" in err
    assert hub_here.repositories == {}


def test_a_dry_run_says_whether_the_repository_is_public(
    hub_here: HubStandIn, converted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--path", str(converted), "--repo", REPO, "--dry-run"]
    assert main([*arguments, "--private"]) == 0
    assert "to a new private repository" in capsys.readouterr().err


def test_a_dry_run_without_the_hub_lists_what_there_is(
    hub_here: HubStandIn, converted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub_here.faults = [Fault("GET", "/api/models/", status=500, message="out of order", times=99)]
    assert main(["--path", str(converted), "--repo", REPO, "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert {line.split()[3] for line in out.splitlines()} == {path.name for path in converted.iterdir()}
    assert "warning: what is there already is not known: " in err and "out of order" in err
    assert "to a public repository if it is new; nothing was sent" in err


def test_a_dry_run_that_cannot_read_the_earlier_record_lists_what_there_is(
    hub_here: HubStandIn, converted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--path", str(converted), "--repo", REPO]
    assert main(arguments) == 0
    hub_here.faults = [Fault("GET", "/conversion.json", status=503, message="out of order", times=99)]
    hub_here.faults += [Fault("HEAD", "/conversion.json", status=503, message="out of order", times=99)]
    capsys.readouterr()
    assert main([*arguments, "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert {line.split()[3] for line in out.splitlines()} == {path.name for path in converted.iterdir()}
    assert "warning: what is there already is not known: " in err


@pytest.mark.parametrize(("status", "said"), [(401, "does not accept the token"), (403, "the token may not")])
def test_a_dry_run_ends_with_a_refusal(
    hub_here: HubStandIn, converted: Path, capsys: pytest.CaptureFixture[str], status: int, said: str
) -> None:
    hub_here.faults = [Fault("GET", "/api/models/", status=status, message="no", times=99)]
    assert main(["--path", str(converted), "--repo", REPO, "--dry-run"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and said in err


def test_what_is_left_out_is_said_in_one_line(
    hub_here: HubStandIn, converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = Path(shutil.copytree(converted, tmp_path / "copy"))
    arguments = ["--path", str(directory), "--repo", REPO]
    assert main([*arguments, "--dry-run"]) == 0
    assert "left out" not in capsys.readouterr().err
    (directory / ".env").write_text("x")
    assert main([*arguments, "--dry-run"]) == 0
    assert "1 left out, as no part of a checkpoint: '.env'\n" in capsys.readouterr().err
    (directory / "inner").mkdir()
    for name in ("\x1b[2J\n", "notes.txt", "vectors.npy"):
        (directory / name).write_text("x")
    for flags in ([*arguments, "--dry-run"], arguments):
        assert main(flags) == 0
        said = "5 left out, as no part of a checkpoint: '\\x1b[2J\\n', '.env', 'inner' and 2 more\n"
        assert said in capsys.readouterr().err


def test_an_unchanged_directory_is_said_to_be(
    hub_here: HubStandIn, converted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--path", str(converted), "--repo", REPO]
    assert main(arguments) == 0
    first = capsys.readouterr()
    assert main(arguments) == 0
    second = capsys.readouterr()
    assert "nothing to send" in second.err
    assert second.out == first.out


def test_progress_is_lines_in_a_log(hub_here: HubStandIn, converted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--path", str(converted), "--repo", REPO])
    err = capsys.readouterr().err
    assert "Uploading: 100%" in err
    assert "\r" not in err


@pytest.mark.parametrize(
    "fault",
    [
        Fault("GET", "/api/models/", status=401, message=f"Invalid token {TOKEN}", times=9),
        Fault("POST", "/repos/create", status=403, message=f"{TOKEN} may not"),
        Fault(
            "POST", "/preupload/", status=503, message=f"{TOKEN}", headers={"X-HF-Warning": f"a; {TOKEN} b"}, times=9
        ),
        Fault("PUT", "/lfs/", status=500, message=f"{TOKEN}", times=99),
        Fault("POST", "/commit/", status=500, message=f"{TOKEN}", headers={"X-HF-Warning": f"c; {TOKEN} d"}),
        Fault("POST", "/commit/", cut_after=10),
    ],
)
def test_a_failure_is_one_line_and_the_token_is_nowhere(
    hub_here: HubStandIn, converted: Path, capfd: pytest.CaptureFixture[str], fault: Fault
) -> None:
    hub_here.faults = [fault]
    assert main(["--path", str(converted), "--repo", REPO]) == 1
    out, err = capfd.readouterr()
    assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1
    assert "Traceback" not in err
    assert TOKEN not in out + err


def test_an_interruption_ends_with_130_and_the_next_run_goes_on(
    hub_here: HubStandIn, converted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi

    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(HfApi, "create_commit", interrupted)
        assert main(["--path", str(converted), "--repo", REPO]) == 130
    sent = hub_here.sent("PUT", "/lfs/")
    assert main(["--path", str(converted), "--repo", REPO]) == 0
    assert hub_here.sent("PUT", "/lfs/") == sent == (converted / "model.safetensors").stat().st_size


@pytest.mark.parametrize("value", ["0", "-1", "x", "nan"])
def test_a_timeout_that_is_none_is_wrong_usage(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--path", "x", "--repo", REPO, "--timeout", value])
    assert caught.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"--timeout: {value!r} is not a number of seconds above 0 and below 1,000,000" in said


def test_an_empty_revision_is_wrong_usage(hub_here: HubStandIn, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--path", "x", "--repo", REPO, "--revision", ""]) == 2
    assert "error: --revision is ''" in capsys.readouterr().err


def test_convert_gives_up_on_silence_too_and_hides_the_token(
    hub_here: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HELIUM_MLX_HUB_TIMEOUT", "60")
    warning = {"X-HF-Warning": f"a; {TOKEN} b"}
    hub_here.faults = [
        Fault("POST", "/preupload/", status=503, headers=warning),
        Fault("POST", "/commit/", is_silent=True),
    ]
    made = ["--hf-path", "demo", "--mlx-path", str(tmp_path / "made"), "-q", "--upload-repo", REPO]
    assert convert_main(made) == 1
    err = capfd.readouterr().err
    assert "timed out" in err
    assert TOKEN not in err


def test_convert_uploads_what_it_made(hub: HubStandIn, tmp_path: Path) -> None:
    made = tmp_path / "made"
    arguments = ("convert", "--hf-path", "demo", "--mlx-path", str(made), "-q", "--upload-repo", REPO)
    result = run(hub.url, tmp_path / "home", *arguments)
    assert result.returncode == 0, result.stderr
    assert f"published as {REPO}" in result.stderr
    assert hub.repositories[REPO].files()["model.safetensors"] == (made / "model.safetensors").read_bytes()
