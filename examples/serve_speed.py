"""What a server costs beside its engine, and beside mlx-lm's server: `python examples/serve_speed.py`.

So many clients ask at once, each for the completion of another text, which streams. In turns: an engine in this
process, read by threads, our server, and `mlx_lm.server` (if mlx-lm is there), each in a process of its own, over the
same checkpoint in float32. Medians of tokens a second, of all clients together, and of the time to a client's first
token.
"""

import argparse
import asyncio
import json
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from http.client import HTTPConnection
from importlib.util import find_spec
from pathlib import Path

from helium_mlx import HeliumEngine, HeliumError, convert
from helium_mlx.terminal import run_command

TEXTS = (
    "Once upon a time", "Il était une fois", "Es war einmal", "C'era una volta", "Érase una vez", "Era uma vez",
)  # fmt: skip

# Tokens, and seconds to the first, of each client of a round.
Round = list[tuple[int, float]]


def prompts(clients: int, number: int) -> list[str]:
    """Return a text for each client, none of them the beginning of another's."""
    return [f"Story {number * clients + place}. {TEXTS[place % len(TEXTS)]}" for place in range(clients)]


def ask_engine(engine: HeliumEngine, texts: Sequence[str], tokens: int) -> Round:
    """Have threads read an engine's streams."""
    found: Round = []

    def read(text: str) -> None:
        begun = time.perf_counter()
        stream = engine.stream(text, max_tokens=tokens)
        next(stream)
        first = time.perf_counter() - begun
        found.append((stream.result().generated_tokens, first))

    readers = [threading.Thread(target=read, args=(text,)) for text in texts]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    return found


def ask_server(port: int, texts: Sequence[str], tokens: int) -> Round:
    """Have tasks read a server's streams."""

    async def read(text: str) -> tuple[int, float]:
        asked = {"prompt": text, "max_tokens": tokens, "temperature": 0.0, "stream": True}
        body = json.dumps({**asked, "stream_options": {"include_usage": True}}).encode()
        begun, first, used = time.perf_counter(), 0.0, 0
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST /v1/completions HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        while line := await reader.readline():
            if not line.startswith(b"data: {"):
                continue
            first = first or time.perf_counter() - begun
            used = (json.loads(line.removeprefix(b"data: ")).get("usage") or {}).get("completion_tokens", used)
        writer.close()
        return used, first

    async def read_all() -> Round:
        return list(await asyncio.gather(*map(read, texts)))

    return asyncio.run(read_all())


def start_ours(directory: Path, clients: int) -> tuple[subprocess.Popen[str], int]:
    """Start our server; return its process and port."""
    words = ["-m", "helium_mlx", "serve", "--model", str(directory), "--port", "0", "--max-concurrent", str(clients)]
    process = subprocess.Popen([sys.executable, *words], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    found = re.search(r":(\d+)/", process.stderr.readline())
    if found is None:
        raise HeliumError("the server did not start")
    return process, int(found[1])


def start_theirs(directory: Path, clients: int) -> tuple[subprocess.Popen[str], int]:
    """Start mlx-lm's server; return its process and port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["-m", "mlx_lm", "server", "--model", str(directory), "--port", str(port), "--log-level", "ERROR"]
    words += ["--decode-concurrency", str(clients), "--prompt-concurrency", str(clients)]
    process = subprocess.Popen([sys.executable, *words], stderr=subprocess.DEVNULL, text=True)
    while process.poll() is None:
        try:
            connection = HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", "/health")
            connection.getresponse().read()
            return process, port
        except OSError:
            time.sleep(0.1)
    raise HeliumError("mlx_lm.server did not start")


def measure(clients: int, tokens: int, rounds: int) -> None:
    """Print a line for each way to be asked."""
    with ExitStack() as ends:
        directory = Path(ends.enter_context(tempfile.TemporaryDirectory())) / "demo-float32"
        convert("demo", directory, dtype="float32", verify=False)
        engine = ends.enter_context(HeliumEngine(directory, batch_size=clients))
        ways: dict[str, Callable[[Sequence[str]], Round]] = {"engine": lambda texts: ask_engine(engine, texts, tokens)}
        starts = {"serve": start_ours, "mlx_lm.server": start_theirs}
        for name, start in starts.items():
            if name == "mlx_lm.server" and find_spec("mlx_lm") is None:
                continue
            process, port = start(directory, clients)
            ends.callback(process.wait)
            ends.callback(process.terminate)
            ways[name] = lambda texts, port=port: ask_server(port, texts, tokens)
        speeds, firsts = {name: list[float]() for name in ways}, {name: list[float]() for name in ways}
        for number in range(rounds + 1):
            for name, ask in ways.items():
                begun = time.perf_counter()
                found = ask(prompts(clients, number))
                # The first round warms up.
                if number:
                    speeds[name].append(sum(used for used, _ in found) / (time.perf_counter() - begun))
                    firsts[name] += [first for _, first in found]
    for name in ways:
        speed, first = statistics.median(speeds[name]), statistics.median(firsts[name])
        print(f"{name:14} {speed:6,.0f} tokens/s, first token after {first * 1e3:5,.0f} ms")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script and return its exit status."""
    parser = argparse.ArgumentParser(description="Measure a server beside its engine, and beside mlx-lm's.")
    parser.add_argument("--clients", type=int, default=16, help="clients at once (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each completion (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, in turns (default: %(default)s)")
    options = parser.parse_args(argv)
    return run_command(lambda: measure(options.clients, options.tokens, options.rounds))


if __name__ == "__main__":
    sys.exit(main())
