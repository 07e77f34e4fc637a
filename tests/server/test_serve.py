"""The command: what it refuses, how it starts and ends, and what it leaves unloaded."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest
from processes import run_code, run_command
from waiting import LONGEST_WAIT

from helium_mlx.serve import main
from helium_mlx.server.running import system_limits

REFUSED = {
    "an open host": (["--host", "0.0.0.0"], "--host is 0.0.0.0, which other machines reach; give an --api-key-file"),
    "a port that there is not": (["--port", "70000"], "--port is 70000"),
    "no requests": (["--max-concurrent", "0"], "--max-concurrent is 0"),
    "no time": (["--timeout", "0"], "--timeout is 0"),
    "any page": (["--allow-origin", "*"], "--allow-origin is *; name one page's origin"),
    "a page with a path": (["--allow-origin", "http://a.example/b"], "--allow-origin is http://a.example/b"),
    "a short key": (["--api-key", "short"], "--api-key must have 8 characters"),
    "a key file that is not there": (["--api-key-file", "nowhere"], "--api-key-file nowhere"),
    "two keys": (["--api-key", "12345678", "--api-key-file", "x"], "not allowed with argument"),
    "a size that is none": (["--memory-limit", "much"], "--memory-limit is 'much'"),
    "too little memory": (["--memory-limit", "1KB"], "the weights take 3,607,808 bytes, and --memory-limit is 1,000"),
}


@contextmanager
def running(*words: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server in a process of its own, and its port."""
    command = [sys.executable, "-m", "helium_mlx", "serve", "--model", "demo", "--port", "0", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"Ready at http://127\.0\.0\.1:(\d+)/", line)
        assert found, line + process.stderr.read()
        yield process, int(found[1])
    finally:
        process.kill()
        process.wait()


def ask(port: int, method: str, path: str, body: dict | None = None, **headers: str) -> tuple[int, dict]:
    connection = HTTPConnection("127.0.0.1", port, timeout=LONGEST_WAIT)
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    answer = connection.getresponse()
    text = json.loads(answer.read())
    connection.close()
    return answer.status, text


@pytest.mark.parametrize("case", REFUSED)
def test_options_that_cannot_be_are_refused_in_a_line(case: str) -> None:
    words, said = REFUSED[case]
    done = run_command("serve", "--model", "demo", "--port", "0", *words)
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_port_in_use_is_named() -> None:
    with running() as (_, port):
        done = run_command("serve", "--model", "demo", "--port", str(port))
        assert done.returncode == 1
        assert f"cannot listen at 127.0.0.1:{port} (Address already in use)" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_after_what_runs(number: signal.Signals) -> None:
    with running() as (process, port):
        connection = HTTPConnection("127.0.0.1", port, timeout=LONGEST_WAIT)
        asked = {"prompt": "Once upon a time", "max_tokens": 40, "temperature": 0, "stream": True}
        connection.request("POST", "/v1/completions", json.dumps(asked))
        answer = connection.getresponse()
        assert answer.readline().startswith(b"data: ")
        os.kill(process.pid, number)
        assert answer.read().endswith(b"data: [DONE]\n\n")
        connection.close()
        assert process.wait(LONGEST_WAIT) == 0
        assert process.stdout is not None
        assert process.stderr is not None
        assert (process.stdout.read(), process.stderr.read()) == ("", "")


def test_a_key_from_a_file_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("a-key-of-enough-characters\n")
    with running("--api-key-file", str(tmp_path / "key")) as (_, port):
        assert ask(port, "GET", "/v1/models")[0] == 401
        status, models = ask(port, "GET", "/v1/models", Authorization="Bearer a-key-of-enough-characters")
        assert (status, models["data"][0]["id"]) == (200, "demo")


def test_nothing_is_logged_of_texts() -> None:
    with running() as (process, port):
        ask(port, "POST", "/v1/completions", {"prompt": "a secret text", "max_tokens": 3})
        ask(port, "POST", "/v1/completions", {"prompt": "a secret text", "max_tokens": -3})
        process.terminate()
        assert process.wait(LONGEST_WAIT) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_without_its_package_the_command_says_what_to_install() -> None:
    done = run_code(
        "import sys; sys.modules['h11'] = None\n"
        "from helium_mlx.serve import main; sys.exit(main(['--model', 'demo', '--port', '0']))"
    )
    assert (done.returncode, done.stderr) == (1, "error: serve needs h11; install it with: pip install '.[serve]'\n")


def test_nothing_else_loads_the_server() -> None:
    done = run_code(
        "import sys; from helium_mlx import *; import helium_mlx.cli; helium_mlx.cli.build_parser()\n"
        "print([name for name in sys.modules if name == 'h11' or name.startswith('helium_mlx.server')])"
    )
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize(
    ("files", "connections"), [(256, 192), (10, 1), (100_000, 1024), (resource.RLIM_INFINITY, 1024)]
)
def test_connections_leave_files_to_the_rest(files: int, connections: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (files, files))
    assert system_limits().connections == connections


@pytest.mark.parametrize(
    "origin", ["http://localhost:3000", "https://editor.example", "app://obsidian.md", "http://[::1]:1"]
)
def test_origins_may_be_of_any_scheme(origin: str, capsys: pytest.CaptureFixture[str]) -> None:
    # The port is refused after it.
    assert main(["--model", "nowhere", "--allow-origin", origin, "--port", "0"]) == 1
    assert "allow-origin" not in capsys.readouterr().err


def test_a_server_loads_nothing_heavy() -> None:
    done = run_code(
        "import sys; from helium_mlx.server.running import serve; from helium_mlx.server.openapi import document\n"
        "heavy = ('transformers', 'torch', 'mlx_lm', 'numpy', 'requests', 'httpx', 'huggingface_hub', 'anyio')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    assert done.stdout == "[]\n", done.stderr
