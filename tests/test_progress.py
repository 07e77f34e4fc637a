"""What a user sees of progress: on terminals of two widths, in a log, and with --quiet."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_standin import HubStandIn, serve
from hub_standin.client import environment, run
from processes import on_terminal, run_code, run_command, screen

from helium_mlx.files.hub import DEMO_DIRECTORY
from helium_mlx.progress import Progress, hidden

REPO = "somebody/tiny-helium"
LARGE = 12_000_000
GENERATE = ("generate", "--model", REPO, "--prompt", "Once", "-m", "2")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubStandIn]:
    source = shutil.copytree(DEMO_DIRECTORY, tmp_path / "repository")
    # As a document it belongs to the checkpoint; nothing reads it.
    (source / "LICENSE.large").write_bytes(b"x" * LARGE)
    with serve({REPO: source}) as hub:
        yield hub


def widest(given: str) -> int:
    return max(len(drawn) for drawn in re.split(r"[\r\n]", given))


@pytest.mark.parametrize("columns", [60, 80])
def test_a_download_is_one_line_and_one_bar(tmp_path: Path, hub: HubStandIn, columns: int) -> None:
    home = environment(hub.url, tmp_path / "home")
    given = on_terminal("-m", "helium_mlx", *GENERATE, columns=columns, env=home, cwd=tmp_path)
    lines = [line for line in screen(given) if line]
    assert lines[0].startswith(f"Downloading {REPO}: ") and lines[0].endswith(" MB")
    assert re.fullmatch(r"Downloading: 100% \|█+\| [\d.]+M/[\d.]+M [\d.]+.?B/s \S+<\S+", lines[1]), lines
    assert [line.partition(":")[0] for line in lines[-3:]] == ["Prompt", "Generation", "Peak memory"]
    assert sum("Downloading:" in line for line in lines) == 1, given
    assert widest(given) <= columns
    # The bar has moved: what is drawn in between is neither its beginning nor its end.
    assert {int(percent) for percent in re.findall(r"Downloading: +(\d+)%", given)} - {0, 100}


def test_a_download_into_a_log_is_one_line(tmp_path: Path, hub: HubStandIn) -> None:
    logged = run(hub.url, tmp_path / "home", *GENERATE).stderr.splitlines()
    assert [line.partition(":")[0] for line in logged] == [f"Downloading {REPO}", "Prompt", "Generation", "Peak memory"]


def test_a_quiet_download_says_nothing(tmp_path: Path, hub: HubStandIn) -> None:
    home = environment(hub.url, tmp_path / "home")
    assert run(hub.url, tmp_path / "other", *GENERATE, "--quiet").stderr == ""
    given = on_terminal("-m", "helium_mlx", *GENERATE, "--quiet", env=home, cwd=tmp_path)
    assert "Downloading" not in given and len(screen(given)) == 2


def test_the_clients_own_switch_takes_the_bar_away(tmp_path: Path, hub: HubStandIn) -> None:
    home = environment(hub.url, tmp_path / "home", HF_HUB_DISABLE_PROGRESS_BARS="1")
    assert "%" not in on_terminal("-m", "helium_mlx", *GENERATE, env=home, cwd=tmp_path)


@pytest.mark.parametrize("columns", [60, 80])
def test_a_conversions_bars_stand_below_each_other(tmp_path: Path, columns: int) -> None:
    arguments = ["convert", "--hf-path", "demo", "--mlx-path", str(tmp_path / "x"), "-q"]
    given = on_terminal("-m", "helium_mlx", *arguments, columns=columns)
    bars = [line for line in screen(given) if "%" in line]
    assert [bar.partition(":")[0] for bar in bars] == ["Converting", "Verifying"]
    assert all("100%" in bar for bar in bars)
    assert max(len(line) for line in re.split(r"[\r\n]", given) if "%" in line) <= columns


def test_an_error_has_a_line_of_its_own(tmp_path: Path) -> None:
    code = (
        "from helium_mlx.errors import HeliumError\n"
        "from helium_mlx.progress import Progress\n"
        "from helium_mlx.terminal import run_command\n"
        "def command():\n"
        "    Progress('Working')(1, 4)\n"
        "    raise HeliumError('it went wrong')\n"
        "assert run_command(command) == 1\n"
    )
    assert screen(on_terminal("-c", code))[-2] == "error: it went wrong"


def test_the_clock_goes_on_in_a_long_step() -> None:
    code = (
        "import time\n"
        "from helium_mlx.progress import Progress\n"
        "progress = Progress('Working')\n"
        "progress(1, 4)\n"
        "bar = progress._bar\n"
        "while bar.format_dict['elapsed'] < 1.7: time.sleep(0.05)\n"
        "progress.close()\n"
    )
    drawn = re.findall(r"00:0\d<", on_terminal("-c", code))
    assert len(set(drawn)) >= 2


def test_a_log_has_a_line_every_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("Working")
    for done in range(101):
        progress(done, 100)
    assert capsys.readouterr().err.splitlines() == [f"Working: {percent}%" for percent in range(0, 101, 10)]
    with hidden():
        Progress("Working")(1, 1)
    assert capsys.readouterr().err == ""


def test_every_command_can_be_quiet(tmp_path: Path) -> None:
    convert = run_command("convert", "--hf-path", "demo", "--mlx-path", str(tmp_path / "x"), "-q", "--quiet")
    assert (convert.returncode, convert.stdout, convert.stderr) == (0, "", "")


def test_nothing_that_draws_is_loaded_where_nothing_is_drawn() -> None:
    code = "import sys\nfrom helium_mlx.progress import Progress\nProgress('x')(1, 2)\nassert 'tqdm' not in sys.modules"
    assert run_code(code).returncode == 0


def test_an_upload_is_one_bar_that_moves_within_a_file(tmp_path: Path) -> None:
    from helium_mlx import convert

    convert("demo", str(tmp_path / "converted"), dtype="float32")
    with serve({}) as hub:
        home = environment(hub.url, tmp_path / "home")
        words = ("upload", "--path", str(tmp_path / "converted"), "--repo", REPO)
        given = on_terminal("-m", "helium_mlx", *words, env=home, cwd=tmp_path)
    lines = [line for line in screen(given) if line]
    assert re.fullmatch(r"Uploading: 100% \|█+\| [\d.]+M/[\d.]+M [\d.]+.?B/s \S+<\S+", lines[0]), given
    assert sum("%" in line for line in lines) == 1, given
    assert widest(given.rpartition("%")[0]) <= 80
