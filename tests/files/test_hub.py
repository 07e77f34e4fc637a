import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_standin import COMMIT, Fault, HubStandIn, Repository, serve
from hub_standin.client import environment, run, set_token, use
from processes import run_code

import helium_mlx
from helium_mlx.errors import CheckpointError, UsageError
from helium_mlx.files.hub import DEMO_DIRECTORY, resolve, resolve_file

REPO = "somebody/tiny-helium"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubStandIn]:
    source = shutil.copytree(DEMO_DIRECTORY, tmp_path / "repository")
    (source / "pytorch_model.bin").write_bytes(b"never read")
    (source / "evil.py").write_text("raise SystemExit")
    with serve({REPO: source}) as hub:
        yield hub


def generate(home: Path, endpoint: str, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return run(endpoint, home, "generate", "--model", REPO, "--prompt", "Bonjour", "-m", "3", *arguments, **more)


def test_a_repository_is_downloaded_once_and_says_how_large_it_is(tmp_path: Path, hub: HubStandIn) -> None:
    first = generate(tmp_path / "home", hub.url)
    assert first.returncode == 0, first.stderr
    size = sum(path.stat().st_size for path in DEMO_DIRECTORY.iterdir())
    assert f"Downloading {REPO}" in first.stderr
    assert f"{size / 1e6:.1f} MB" in first.stderr
    assert "\r" not in first.stderr

    asked = len(hub.requests)
    second = generate(tmp_path / "home", hub.url)
    assert second.stdout == first.stdout
    assert "Downloading" not in second.stderr
    assert len(hub.requests) == asked


def test_pickles_and_code_are_never_fetched(tmp_path: Path, hub: HubStandIn) -> None:
    generate(tmp_path / "home", hub.url)
    assert not [path for path in hub.requests if path.endswith((".bin", ".py"))]


def test_a_cached_repository_opens_without_a_network(tmp_path: Path, hub: HubStandIn) -> None:
    online = generate(tmp_path / "home", hub.url)
    assert generate(tmp_path / "home", "http://127.0.0.1:9").stdout == online.stdout
    assert generate(tmp_path / "home", hub.url, HF_HUB_OFFLINE="1").stdout == online.stdout


def test_a_cache_that_holds_the_config_only_is_completed(tmp_path: Path, hub: HubStandIn) -> None:
    code = f"import helium_mlx; helium_mlx.HeliumConfig.from_pretrained({REPO!r})"
    run_code(code, check=True, env=environment(hub.url, tmp_path / "home"))
    result = generate(tmp_path / "home", hub.url)
    assert result.returncode == 0, result.stderr


def test_a_revision_is_asked_for_by_name(tmp_path: Path, hub: HubStandIn) -> None:
    assert generate(tmp_path / "home", hub.url, "--revision", "v1").returncode == 0
    assert any(path.endswith("/revision/v1") for path in hub.requests)


def test_a_conversion_from_the_hub_records_the_commit(tmp_path: Path, hub: HubStandIn) -> None:
    destination = tmp_path / "converted"
    result = run(hub.url, tmp_path / "home", "convert", "--hf-path", REPO, "--mlx-path", str(destination), "-q")
    assert result.returncode == 0, result.stderr
    assert COMMIT in (destination / "conversion.json").read_text()
    card = (destination / "README.md").read_text()
    assert f"base_model: {REPO}" in card
    assert "base_model_relation: quantized" in card


@pytest.mark.parametrize(
    ("endpoint", "arguments", "environment"),
    [
        ("http://127.0.0.1:9", [], {}),
        (None, ["--revision", "nowhere"], {}),
        (None, ["--model", "somebody/nothing"], {}),
        (None, [], {"HF_HUB_OFFLINE": "1"}),
    ],
    ids=["no network", "no such revision", "no such repository", "offline"],
)
def test_what_cannot_be_downloaded_is_one_line_that_names_the_demo_and_no_flag(
    tmp_path: Path, hub: HubStandIn, endpoint: str | None, arguments: list[str], environment: dict[str, str]
) -> None:
    result = generate(tmp_path / "home", endpoint or hub.url, *arguments, **environment)
    assert result.returncode == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "or try 'demo'" in errors[0]
    assert ("check the name, the revision," in errors[0]) == ("--revision" in arguments)
    assert "Traceback" not in result.stderr


def test_the_demo_is_in_the_package() -> None:
    assert resolve("demo") == DEMO_DIRECTORY


@pytest.mark.parametrize("name", ["nowhere", "./some/where", "/no/such/place", "a/b/c", "../x", ""])
def test_a_name_that_is_no_repository_asks_no_network(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"no such directory.*; 'demo' is the one in this package$"):
        resolve(name)


SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def demo_files() -> dict[str, bytes]:
    files = {path.name: path.read_bytes() for path in DEMO_DIRECTORY.iterdir()}
    del files["training.json"]
    return files


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[dict[str, bytes]], HubStandIn]]:
    """Point the client of this process at a stand-in with a repository of some files."""
    with serve({}) as hub:
        use(hub, monkeypatch, tmp_path / "home")

        def holding(files: dict[str, bytes]) -> HubStandIn:
            hub.repositories[REPO] = Repository.of_files(files)
            return hub

        yield holding


def names(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


Holding = Callable[[dict[str, bytes]], HubStandIn]


def test_only_what_belongs_to_the_checkpoint_is_fetched(here: Holding) -> None:
    wanted = demo_files() | {"LICENSE": b"x", "chat_template.jinja": b"x", "additional_chat_templates/rag.jinja": b"x"}
    others = (*SHARDS, "consolidated.safetensors", "a/model.safetensors", "a/config.json", "onnx/tokenizer.json",
              "trainer_state.json", "adapter_model.safetensors", "x.gguf", "a/README.md")  # fmt: skip
    here(wanted | dict.fromkeys(others, b"x"))
    assert names(resolve(REPO)) == wanted.keys()


def test_an_adapter_is_told_of_and_not_fetched(here: Holding, tmp_path: Path) -> None:
    adapter = {"adapter_config.json": b'{"base_model_name_or_path": "a/b"}', "adapter_model.safetensors": b"x"}
    here(adapter)
    with pytest.raises(CheckpointError, match=r"holds an adapter \(adapter_config.json\) and .* 'a/b', with"):
        helium_mlx.load(REPO)
    here(demo_files() | adapter)
    report = helium_mlx.convert(REPO, str(tmp_path / "x"))
    assert [said for said in report.warnings if said.startswith("adapter_config.json left out")]
    assert not (tmp_path / "x/adapter_config.json").exists()


def test_of_shards_those_that_the_index_names_are_fetched(here: Holding) -> None:
    files = demo_files()
    del files["model.safetensors"]
    files["model.safetensors.index.json"] = json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}).encode()
    here(files | dict.fromkeys((*SHARDS, "model-00001-of-00009.safetensors", "other.safetensors"), b"x"))
    directory = resolve(REPO)
    assert names(directory) == files.keys() | {*SHARDS}
    (directory / SHARDS[1]).unlink()
    assert names(resolve(REPO)) == files.keys() | {*SHARDS}


def test_one_file_comes_before_older_shards_in_the_cache_too(here: Holding, tmp_path: Path) -> None:
    index = json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}).encode()
    hub = here(demo_files() | {"model.safetensors.index.json": index} | dict.fromkeys(SHARDS, b"x"))
    directory = resolve(REPO)
    # Another program fetches the index, or the file was there first and the index came with an update.
    (directory / "model.safetensors.index.json").write_bytes(index)
    asked = len(hub.requests)
    assert resolve(REPO) == directory
    assert len(hub.requests) == asked
    with pytest.warns(UserWarning, match=r"model.safetensors.index.json left out: model.safetensors is what is read"):
        helium_mlx.load(REPO)
    (directory / "model.safetensors").unlink()
    resolve(REPO)
    assert names(directory) == demo_files().keys() | {"model.safetensors.index.json"}


def test_a_cached_commit_without_its_config_is_completed(here: Holding) -> None:
    hub = here(demo_files())
    hub.faults = [Fault("GET", f"/api/models/{REPO}", edit=without_config)]
    directory = resolve(REPO)
    assert not (directory / "config.json").exists()
    assert resolve(REPO) == directory
    assert (directory / "config.json").exists()


def without_config(answer: dict[str, list[dict[str, object]]]) -> object:
    return answer | {"siblings": [file for file in answer["siblings"] if file["rfilename"] != "config.json"]}


def test_a_repository_without_files_is_said_to_be_that(here: Holding) -> None:
    here({})
    with pytest.raises(CheckpointError, match="the Hub lists no files in it at main"):
        resolve(REPO)


def test_a_directory_of_links_to_files_of_the_cache_is_a_checkpoint(here: Holding, tmp_path: Path) -> None:
    here(demo_files())
    (tmp_path / "mine").mkdir()
    for path in resolve(REPO).iterdir():
        (tmp_path / "mine" / path.name).symlink_to(path)
    helium_mlx.load(tmp_path / "mine")
    helium_mlx.convert(str(tmp_path / "mine"), str(tmp_path / "made"))


def test_kyutais_only_file_is_fetched_whatever_it_is_called(here: Holding) -> None:
    here({"helium-1.safetensors": b"x", "tokenizer.model": b"x", "a/other.safetensors": b"x"})
    assert names(resolve(REPO)) == {"helium-1.safetensors", "tokenizer.model"}
    asked = here({}).requests
    before = len(asked)
    resolve(REPO)
    assert len(asked) == before


@pytest.mark.parametrize("how", ["argument", "name", "argument with a slash", "name with a slash"])
def test_a_subfolder_is_a_checkpoint_of_its_own(here: Holding, how: str) -> None:
    inside = {f"variants/2024/{name}": data for name, data in demo_files().items() if name != "README.md"}
    here(inside | {"README.md": b"---\nlicense: mit\n---\n", "model.safetensors": b"x", "variants/config.json": b"x"})
    folder = "variants/2024/" if "slash" in how else "variants/2024"
    name, subfolder = (REPO, folder) if how.startswith("argument") else (f"{REPO}:{folder}", None)
    directory = resolve(name, subfolder=subfolder)
    assert names(directory) == demo_files().keys() - {"README.md"}
    assert directory.parts[-2:] == ("variants", "2024")
    helium_mlx.load(name, subfolder=subfolder)
    assert resolve_file(name, "config.json", subfolder=subfolder) == directory / "config.json"
    with pytest.raises(CheckpointError, match="no subfolder nowhere in it"):
        resolve(REPO, subfolder="nowhere")


def test_a_conversion_of_a_subfolder_records_it_and_has_the_licence_of_the_whole(here: Holding, tmp_path: Path) -> None:
    inside = {f"v2/{name}": data for name, data in demo_files().items() if name != "README.md"}
    here(inside | {"README.md": b"---\nlicense: mit\n---\n"})
    report = helium_mlx.convert(f"{REPO}:v2", str(tmp_path / "made"), quantize=True)
    assert (report.source, report.subfolder, report.revision) == (REPO, "v2", COMMIT)
    record = json.loads((tmp_path / "made/conversion.json").read_text())
    assert (record["source"], record["subfolder"]) == (REPO, "v2")
    card = (tmp_path / "made/README.md").read_text()
    assert "license: mit" in card
    assert f"/tree/{COMMIT}/v2" in card
    assert f"base_model: {REPO}\n" in card


def test_a_conversion_of_a_subfolder_has_the_licence_files_around_it(here: Holding, tmp_path: Path) -> None:
    inside = {f"a/v2/{name}": data for name, data in demo_files().items() if name != "README.md"}
    above = {
        "LICENSE": b"all",
        "NOTICE.txt": b"notice",
        "a/LICENSE": b"a",
        "a/README.md": b"# a\n",
        "b/LICENSE.b": b"b",
    }
    here(inside | above | {"README.md": b"---\nlicense: mit\nlanguage: fr\n---\n"})
    report = helium_mlx.convert(f"{REPO}:a/v2", str(tmp_path / "made"))
    written = {name: (tmp_path / "made" / name).read_bytes() for name in names(tmp_path / "made")}
    assert {name: data for name, data in written.items() if name[:3] in ("LIC", "NOT")} == {
        "LICENSE": b"a", "NOTICE.txt": b"notice"
    }  # fmt: skip
    assert report.source_files["LICENSE"] == report.files["LICENSE"] == hashlib.sha256(b"a").hexdigest()
    # The nearer card says nothing of a licence.
    assert b"license: mit\n" in written["README.md"]
    assert b"language: fr\n" in written["README.md"]


@pytest.mark.parametrize("how", ["subfolder", "name", "directory"])
def test_a_local_subfolder_is_under_the_terms_of_what_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(DEMO_DIRECTORY, "all/models/v2")
    Path("all/LICENSE").write_text("above what was named")
    Path("all/models/README.md").write_text("---\nlicense: mit\nlicense_link: x\n---\nUnder the Gemma terms of use.\n")
    Path("all/models/v2/README.md").write_text("---\nlanguage: fr\n---\n")
    Path("all/models/LICENSE.txt").write_text("terms")
    source = {"subfolder": "all/models", "name": "all/models:v2", "directory": "all/models/v2"}[how]
    helium_mlx.convert(source, "made", subfolder="v2" if how == "subfolder" else None)
    card = Path("made/README.md").read_text()
    is_inside = how != "directory"
    # A directory that was named by itself has its own terms, whatever lies around it.
    assert names(Path("made")) & {"LICENSE", "LICENSE.txt", "NOTICE"} == (
        {"LICENSE.txt", "NOTICE"} if is_inside else set()
    )
    assert ("license: mit\nlicense_link: x\n" in card) == is_inside
    assert ("Gemma terms" in card) == is_inside
    assert "language: fr" in card


def test_a_subfolder_of_a_directory_is_a_directory(tmp_path: Path) -> None:
    shutil.copytree(DEMO_DIRECTORY, tmp_path / "a/b")
    assert resolve(tmp_path, subfolder="a/b") == tmp_path / "a/b"
    assert resolve_file(tmp_path, "config.json", subfolder="a/b") == tmp_path / "a/b/config.json"
    assert resolve(tmp_path, subfolder="a/b/") == tmp_path / "a/b"
    with pytest.raises(CheckpointError, match="has no subfolder c; check its name"):
        resolve(tmp_path, subfolder="c")


@pytest.mark.parametrize("name", ["", ".", "..", "a/../b", "/a", "/", "a//", "a//b", "~", "a\\b", "a\nb", "a*", "./a"])
def test_a_subfolder_that_leads_elsewhere_is_refused(name: str) -> None:
    for arguments in ((REPO, name), ("demo", name)):
        with pytest.raises(UsageError, match=r"^subfolder is "):
            resolve(arguments[0], subfolder=arguments[1])
    with pytest.raises(UsageError, match=r"^subfolder is "):
        resolve(f"{REPO}:{name}")


def test_a_subfolder_is_named_once() -> None:
    with pytest.raises(UsageError, match="leave one of them out"):
        resolve(f"{REPO}:a", subfolder="b")


def only_weights(hub: HubStandIn) -> None:
    """Fill the cache as transformers does: without card and licence."""
    from huggingface_hub import hf_hub_download

    for name in hub.repositories[REPO].files():
        if name not in ("README.md", "LICENSE"):
            hf_hub_download(REPO, name)


def test_card_and_licence_that_another_program_left_out_are_fetched(here: Holding, tmp_path: Path) -> None:
    hub = here(demo_files() | {"README.md": b"---\nlicense: mit\n---\n", "LICENSE": b"terms"})
    only_weights(hub)
    asked = len(hub.requests)
    resolve(REPO)
    assert len(hub.requests) == asked
    helium_mlx.convert(REPO, str(tmp_path / "made"))
    assert "license: mit" in (tmp_path / "made/README.md").read_text()
    assert (tmp_path / "made/LICENSE").read_bytes() == b"terms"


def test_offline_a_card_that_is_not_there_is_unknown_and_not_missing(
    here: Holding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = demo_files()
    del files["README.md"]
    only_weights(here(files))
    with monkeypatch.context() as patched:
        patched.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        helium_mlx.convert(REPO, str(tmp_path / "unknown"))
    assert "the Hub was not asked" in (tmp_path / "unknown/README.md").read_text()
    # Asked, it says that there is none, which is remembered.
    helium_mlx.convert(REPO, str(tmp_path / "known"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    helium_mlx.convert(REPO, str(tmp_path / "again"))
    for name in ("known", "again"):
        assert "the Hub was not asked" not in (tmp_path / name / "README.md").read_text()


@pytest.mark.parametrize(
    ("status", "code", "token", "expected"),
    [
        (401, "GatedRepo", None, r"accept the terms .*; do that at http://127.*/somebody/tiny-helium, and log in"),
        (403, "GatedRepo", "hf_x", r"accept the terms .*; do that at http://127.*/somebody/tiny-helium, or try"),
        (401, "RepoNotFound", None, "no such repository, or shows it only with a token, and there is none here"),
        (404, "RepoNotFound", "hf_x", "no such repository or revision, or the token may not see it"),
        (401, "", "hf_x", "does not accept the token"),
        (403, "", "hf_x", "the token may not read there"),
        (500, "", "hf_x", "the Hub failed .500, oh.; run the same command again: what is here is not fetched again"),
        (404, "RevisionNotFound", "hf_x", "has no revision main of it .*; check the name, the revision"),
    ],
)
def test_each_refusal_of_a_download_says_what_to_do(
    here: Holding, monkeypatch: pytest.MonkeyPatch, status: int, code: str, token: str | None, expected: str
) -> None:
    hub = here(demo_files())
    set_token(monkeypatch, token)
    message = "Invalid credentials in Authorization header" if (status, code) == (401, "") else "oh"
    hub.faults = [Fault("GET", "/api/models/", status, message, {"X-Error-Code": code}, times=9)]
    with pytest.raises(CheckpointError, match=rf"^{REPO}: .*{expected}") as caught:
        resolve(REPO)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_called_demo_is_named_once(tmp_path: Path, hub: HubStandIn) -> None:
    (tmp_path / "demo").mkdir()
    code = "import helium_mlx.files.hub as hub; print(*(hub.resolve('demo') == hub.DEMO_DIRECTORY for _ in range(2)))"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert result.stdout.split() == ["True", "True"]
    said = "note: 'demo' is the checkpoint inside the package; for the folder of that name say ./demo\n"
    assert result.stderr == said
