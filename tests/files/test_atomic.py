"""A file that is replaced: for its owner alone when new, of its own mode later, and without leftovers."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import helium_mlx
from helium_mlx.files.atomic import replacing

IN_THE_MAKING = """
import sys, pathlib
from helium_mlx.files.atomic import replacing

with replacing(pathlib.Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print("half", flush=True)
    sys.stdin.read()
"""


def write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def writing(path: Path) -> "subprocess.Popen[str]":
    root = str(Path(helium_mlx.__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-c", IN_THE_MAKING, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    return process


def test_a_new_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    write(tmp_path / "x", "a prompt")
    assert mode(tmp_path / "x") == 0o600


@pytest.mark.parametrize("before", [0o600, 0o640, 0o644])
def test_a_file_that_was_there_keeps_its_mode(tmp_path: Path, before: int) -> None:
    (tmp_path / "x").write_text("old")
    (tmp_path / "x").chmod(before)
    write(tmp_path / "x", "new")
    assert mode(tmp_path / "x") == before
    assert (tmp_path / "x").read_text() == "new"


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path: Path) -> None:
    with writing(tmp_path / "x") as killed:
        killed.send_signal(signal.SIGKILL)
    assert len(os.listdir(tmp_path)) == 1
    (tmp_path / ".y.01234567.partial").write_text("of another file")
    write(tmp_path / "x", "new")
    assert sorted(os.listdir(tmp_path)) == [".y.01234567.partial", "x"]


def test_what_a_live_run_is_writing_is_left_alone(tmp_path: Path) -> None:
    with writing(tmp_path / "x") as slow:
        write(tmp_path / "x", "fast")
        assert slow.stdin is not None
        slow.stdin.close()
    assert slow.returncode == 0
    assert os.listdir(tmp_path) == ["x"]
    assert (tmp_path / "x").read_text() == "half"
