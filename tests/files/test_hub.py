import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_standin import COMMIT, HubStandIn, serve
from hub_standin.client import environment, run
from processes import run_code

from helium_mlx.errors import CheckpointError
from helium_mlx.files.hub import DEMO_DIRECTORY, resolve

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
