"""Ctrl-C while a command's imports run: a newline and 130, as later."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import helium_mlx

# Python imports a module of this name first. It interrupts the process when MLX is looked for.
INTERRUPT = """
import importlib.abc, os, signal, sys

class Interrupt(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "mlx.core":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
"""
SCRIPT = ["-c", "import sys; from helium_mlx.cli import main; sys.exit(main())"]


def started(directory: Path, *words: str) -> subprocess.CompletedProcess[bytes]:
    (directory / "sitecustomize.py").write_text(INTERRUPT)
    (directory / "helium-mlx").write_text(f"#!{sys.executable}\n{SCRIPT[1]}\n")
    root = Path(helium_mlx.__file__).parents[1]
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": f"{directory}{os.pathsep}{root}"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize("command", ["generate", "convert", "compare", "export", "selfcheck"])
def test_a_command_that_is_interrupted_while_it_starts_says_nothing(tmp_path: Path, command: str) -> None:
    options = {"generate": ["--model", "demo", "--prompt", "x"], "selfcheck": []}
    paths = {"convert": ["--hf-path", "demo", "--mlx-path", f"{tmp_path}/x"], "export": ["--model", "demo"]}
    paths |= {"compare": ["--reference", "demo", "--candidate", "demo"]}
    given = options.get(command, paths.get(command, []))
    given += ["--output", f"{tmp_path}/x"] if command == "export" else []
    for words in (["-m", f"helium_mlx.{command}"], ["-m", "helium_mlx", command], [f"{tmp_path}/helium-mlx", command]):
        ended = started(tmp_path, *words, *given)
        assert (ended.returncode, ended.stdout, ended.stderr) == (130, b"", b"\n"), words


def test_a_program_that_imports_the_package_is_interrupted_as_usual(tmp_path: Path) -> None:
    code = "import helium_mlx\ntry:\n    helium_mlx.load\nexcept KeyboardInterrupt:\n    print('usual')"
    assert started(tmp_path, "-c", code).stdout == b"usual\n"
