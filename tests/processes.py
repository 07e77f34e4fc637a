"""Python in a process of its own: code, a command of the package, or a script of the examples."""

import subprocess
import sys
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
