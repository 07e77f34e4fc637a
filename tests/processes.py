"""Python in a process of its own: code, a command of the package, or a script of the examples."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def run_python(
    *words: object,
    check: bool = False,
    timeout: float | None = 120,
    input: str | None = None,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run this Python with some words after it, and wait; `check` raises where the status is not 0."""
    command = [sys.executable, *map(str, words)]
    options = {"capture_output": True, "text": True, "timeout": timeout}
    return subprocess.run(command, check=check, input=input, env=env, cwd=cwd, **options)


def run_code(
    code: str,
    *arguments: object,
    check: bool = False,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run code, which finds the arguments in `sys.argv[1:]`."""
    return run_python("-c", code, *arguments, check=check, env=env, cwd=cwd)


def run_command(
    *arguments: str, input: str | None = None, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command of the package: `run_command("generate", "--help")`."""
    return run_python("-m", "helium_mlx", *arguments, input=input, env=env, cwd=cwd)


def run_example(script: str, *arguments: object, timeout: float = 500) -> subprocess.CompletedProcess[str]:
    """Run a script of the examples."""
    return run_python(EXAMPLES / script, *arguments, timeout=timeout)


def on_terminal(*words: str, columns: int = 80, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """Return what a terminal of so many columns is given: standard output and error of a Python that must succeed."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen([sys.executable, *words], stdout=writer, stderr=writer, env=env, cwd=cwd)
    os.close(writer)
    shown = b""
    while True:
        try:
            block = os.read(reader, 4096)
        except OSError:
            break
        if not block:
            break
        shown += block
    os.close(reader)
    assert process.wait() == 0, shown.decode()
    return shown.decode()


def screen(given: str) -> list[str]:
    """Return the lines that are left on a terminal, none of them longer than it was drawn."""
    lines = [""]
    for line in given.replace("\r\n", "\n").split("\n"):
        left = ""
        for part in line.split("\r"):
            left = part + left[len(part) :]
        lines.append(left.rstrip())
    return lines[1:]
