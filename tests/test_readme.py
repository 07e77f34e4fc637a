"""The README must go on telling the truth: its file tree, its commands and its Python run here."""

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest

import helium_mlx
from helium_mlx.cli import COMMANDS
from helium_mlx.files.hub import DEMO_DIRECTORY

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
PACKAGE = Path(helium_mlx.__file__).parent


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def command_lines() -> list[tuple[str, list[str]]]:
    """Every run of a command in the shell blocks, as (command, arguments)."""
    found = []
    for line in "\n".join(blocks("sh")).splitlines():
        for part in re.split(r"&&|\|", line):
            words = shlex.split(part, comments=True)
            for i, word in enumerate(words):
                if word == "convert.py" or word.startswith("helium_mlx."):
                    found.append((word.removeprefix("helium_mlx.").removesuffix(".py"), words[i + 1 :]))
    return found


@pytest.mark.parametrize(("command", "arguments"), command_lines())
def test_every_command_parses(command: str, arguments: list[str]) -> None:
    assert command in COMMANDS
    parser: argparse.ArgumentParser = importlib.import_module(f"helium_mlx.{command}").build_parser()
    parser.parse_args(arguments)


def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks("python"):
        exec(block, {})
    assert capsys.readouterr().out.strip()


def test_the_marked_commands_are_one_line_each() -> None:
    for marker in ("command-1", "command-2"):
        following = README.partition(f"<!-- {marker} -->\n```sh\n")[2]
        assert following.startswith("python3 -m venv")
        assert following.partition("\n")[2].startswith("```")


def test_the_demo_is_at_most_4_megabytes() -> None:
    assert sum(path.stat().st_size for path in DEMO_DIRECTORY.rglob("*") if path.is_file()) <= 4_000_000
