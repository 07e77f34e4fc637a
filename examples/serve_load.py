"""Loads a server with clients, and with what clients do: `python examples/serve_load.py`.

For `--waves`, `--clients` ask at once, some from threads on connections that they keep, some from asyncio tasks: read
whole, streamed, read slowly, hung up on before or amid the answer, scored. Who is told to come again (503) does. Each
text has to be what `stream_generate` gives alone. In the first third of the waves the server is ended while it answers,
and started anew: streams then have to end with an error that says so, and with a text that is right so far. After a
wave nothing may be open; the server's memory and threads are noted.

Exit status 1 if a request is lost or differs, or if memory or threads grow.
"""

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from helium_mlx import HeliumError, load, stream_generate
from helium_mlx.terminal import run_command

PROMPTS = (
    "Once upon a time",
    "Il était une fois une fille qui s'appelait Zoé",
    "Um drei Uhr trafen sich Anna und Felix im Hafen. Felix hatte einen silbernen Hut verloren",
    "Ogni giorno, dopo pranzo, Agnese giocava nel parco. " * 5,
)
OPTIONS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.9, "seed": 7},
    {"temperature": 0.0, "presence_penalty": 1.0},
    {"temperature": 0.0, "stop": [","]},
    {"temperature": 0.0, "heal": True},
)

# behaviour -> how often it is picked
BEHAVIOURS = {"whole": 6, "streamed": 6, "slow": 2, "gone before": 2, "gone amid": 3, "scored": 1}

# Bytes and threads by which a server may be larger in the last third of the waves than in the middle one.
SLACK = {"resident": 64_000_000, "threads": 1}
_ENDS = "the server ends"


@dataclass(frozen=True)
class Case:
    """A request and the text that it gives alone."""

    parameters: dict[str, Any]
    text: str


@dataclass
class Tally:
    """What became of the requests."""

    ended: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, what: str, problem: str | None) -> None:
        """Count a request that has ended."""
        with self._lock:
            self.ended[what] += 1
            if problem:
                self.wrong.append(f"{what}: {problem}")


class Server:
    """The command in a process of its own."""

    def __init__(self, model: str, dtype: str) -> None:
        words = ["serve", "--model", model, "--dtype", dtype, "--port", "0", "--max-concurrent", "16"]
        self.process = subprocess.Popen([sys.executable, "-m", "helium_mlx", *words], stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        said = self.process.stderr.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", said)
        if found is None:
            raise HeliumError(f"the server did not start: {said}{self.process.stderr.read()}")
        self.port = int(found[1])

    def end(self) -> None:
        """End it, and wait. Raises HeliumError where it does not end as it should."""
        self.process.terminate()
        status = self.process.wait(30)
        assert self.process.stderr is not None
        said = self.process.stderr.read()
        if status or said:
            raise HeliumError(f"the server ended with {status}: {said}")

    def open_requests(self) -> int:
        """Return how many requests run or wait."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", "/metrics")
        found = re.search(r"^helium_mlx_open_requests (\d+)", connection.getresponse().read().decode(), re.MULTILINE)
        connection.close()
        assert found
        return int(found[1])

    def size(self) -> dict[str, int]:
        """Return its bytes in RAM and its threads, where the system says them (Linux)."""
        status = Path(f"/proc/{self.process.pid}/status")
        if not status.exists():
            return {"resident": 0, "threads": 0}
        values = dict(re.findall(r"^(\w+):\s+(\d+)", status.read_text(), re.MULTILINE))
        return {"resident": int(values["VmRSS"]) * 1024, "threads": int(values["Threads"])}


def cases_of(model_name: str, dtype: str) -> list[Case]:
    """Return every prompt with every kind of options, computed alone."""
    model, tokenizer = load(model_name, dtype=dtype)
    cases = []
    for place, prompt in enumerate(PROMPTS):
        for number, options in enumerate(OPTIONS):
            parameters = {"max_tokens": 6 + 9 * ((place + number) % 4), **options}
            chunks = list(stream_generate(model, tokenizer, prompt, **parameters))
            text = (" " if chunks[0].leading_space else "") + "".join(chunk.text for chunk in chunks)
            cases.append(Case({"prompt": prompt, **parameters}, text))
    return cases


def request_of(case: Case, behaviour: str) -> dict[str, Any]:
    """Return the JSON object of a request."""
    if behaviour == "scored":
        return {"prompt": case.parameters["prompt"], "max_tokens": 0, "echo": True, "logprobs": 1}
    streams = behaviour in ("streamed", "slow", "gone amid")
    return {**case.parameters, "stream": streams}


def problem_of(case: Case, behaviour: str, bodies: Iterable[str], ends: bool) -> str | None:
    """Say what is wrong with an answer's objects or events, if anything is; `ends` if the server was being ended."""
    text, is_done = "", behaviour in ("whole", "scored")
    for body in bodies:
        if body == "[DONE]":
            is_done = True
            continue
        answer = json.loads(body)
        if "error" in answer:
            if ends and _ENDS in answer["error"]["message"]:
                return None if case.text.startswith(text) else f"{text!r} before the end, alone {case.text!r}"
            return str(answer["error"])
        text += answer["choices"][0]["text"]
    expected = case.parameters["prompt"] if behaviour == "scored" else case.text
    if behaviour == "gone amid":
        return None if expected.startswith(text) else f"{text!r}, alone {expected!r}"
    return None if is_done and text == expected else f"{text!r} (whole: {is_done}), alone {expected!r}"


class Wave:
    """Clients that ask at once; each is drawn from `seed` and its number."""

    def __init__(self, server: Server, cases: list[Case], tally: Tally, *, seed: int) -> None:
        self.server = server
        self.cases = cases
        self.tally = tally
        self.seed = seed
        self.ends = False

    def run(self, clients: int, *, ends: bool) -> None:
        """Run them all, in a few threads and many tasks; in between, `ends` the server."""
        workers = [threading.Thread(target=self._thread, args=(range(first, clients // 2, 40),)) for first in range(40)]
        workers.append(threading.Thread(target=lambda: asyncio.run(self._tasks(range(clients // 2, clients)))))
        for worker in workers:
            worker.start()
        if ends:
            time.sleep(0.5)
            self.ends = True
            self.server.end()
        for worker in workers:
            worker.join()

    def _picked(self, number: int) -> tuple[Case, str, random.Random]:
        draw = random.Random(self.seed * 1_000_003 + number)
        return draw.choice(self.cases), draw.choices(list(BEHAVIOURS), list(BEHAVIOURS.values()))[0], draw

    def _note(self, what: str, error: Exception | None, problem: str | None = None) -> None:
        # Who comes while it ends finds nobody, or loses what had not begun.
        if isinstance(error, (OSError, HTTPException, EOFError)) and self.ends:
            self.tally.note("turned away at the end", None)
        else:
            self.tally.note(what, problem if error is None else repr(error))

    # --- threads, with connections that are kept

    def _thread(self, numbers: Sequence[int]) -> None:
        connection = HTTPConnection("127.0.0.1", self.server.port, timeout=300)
        for number in numbers:
            case, behaviour, draw = self._picked(number)
            try:
                self._note(behaviour, None, self._ask(connection, case, behaviour, draw))
            except Exception as error:
                connection.close()
                self._note(behaviour, error)
        connection.close()

    def _ask(self, connection: HTTPConnection, case: Case, behaviour: str, draw: random.Random) -> str | None:
        body = json.dumps(request_of(case, behaviour))
        while True:
            connection.request("POST", "/v1/completions", body)
            if behaviour == "gone before":
                time.sleep(draw.random() * 0.05)
                connection.close()
                return None
            answer = connection.getresponse()
            if answer.status != 503:
                break
            if _ENDS in answer.read().decode():
                return None if self.ends else "told of an end"
            time.sleep(0.1 + draw.random())
        if behaviour in ("whole", "scored"):
            return problem_of(case, behaviour, [answer.read().decode()], self.ends)
        bodies = []
        while line := answer.readline():
            if line.startswith(b"data: "):
                bodies.append(line[6:].decode().rstrip())
            if behaviour == "slow":
                time.sleep(draw.random() * 0.02)
            if behaviour == "gone amid" and draw.random() < 0.2:
                connection.close()
                break
        return problem_of(case, behaviour, bodies, self.ends)

    # --- tasks, with a connection for each request

    async def _tasks(self, numbers: Sequence[int]) -> None:
        await asyncio.gather(*map(self._task, numbers))

    async def _task(self, number: int) -> None:
        case, behaviour, draw = self._picked(number)
        try:
            self._note(f"{behaviour}, task", None, await self._ask_async(case, behaviour, draw))
        except Exception as error:
            self._note(f"{behaviour}, task", error)

    async def _ask_async(self, case: Case, behaviour: str, draw: random.Random) -> str | None:
        body = json.dumps(request_of(case, behaviour)).encode()
        head = f"POST /v1/completions HTTP/1.0\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
            try:
                writer.write(head.encode() + body)
                if behaviour == "gone before":
                    await asyncio.sleep(draw.random() * 0.05)
                    return None
                status = int((await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1])
                if status != 503:
                    return await self._read(reader, case, behaviour, draw)
                if _ENDS in (await reader.read()).decode():
                    return None if self.ends else "told of an end"
            finally:
                writer.close()
            await asyncio.sleep(0.1 + draw.random())

    async def _read(self, reader: asyncio.StreamReader, case: Case, behaviour: str, draw: random.Random) -> str | None:
        bodies = []
        while line := await reader.readline():
            if line != b"\n":
                bodies.append(line.decode().removeprefix("data: ").rstrip())
            if behaviour == "slow":
                await asyncio.sleep(draw.random() * 0.02)
            if behaviour == "gone amid" and draw.random() < 0.2:
                break
        return problem_of(case, behaviour, bodies, self.ends)


def load_server(options: argparse.Namespace) -> None:
    """Load, and judge. Raises HeliumError for anything that is not as it should be."""
    cases, tally = cases_of(options.model, options.dtype), Tally()
    server, sizes = Server(options.model, options.dtype), list[dict[str, int]]()
    begun = time.monotonic()
    try:
        for number in range(options.waves):
            # Those that come after show whether one server grows.
            ends = number < options.waves // 3
            Wave(server, cases, tally, seed=options.seed + number).run(options.clients, ends=ends)
            if ends:
                server = Server(options.model, options.dtype)
            while server.open_requests():
                time.sleep(0.01)
            sizes.append(server.size())
            print(f"wave {number + 1}: {sizes[-1]['resident']:,} bytes, {sizes[-1]['threads']} threads", flush=True)
    finally:
        if server.process.poll() is None:
            server.end()
    for what, count in sorted(tally.ended.items()):
        print(f"{count:6,} {what}")
    judge(tally, options.waves * options.clients, sizes)
    print(
        f"{tally.ended.total():,} requests in {time.monotonic() - begun:.0f} s, none lost, all as alone; nothing grows"
    )


def judge(tally: Tally, made: int, sizes: Sequence[dict[str, int]]) -> None:
    """Raise HeliumError if requests of those made were lost or went wrong, or if the server grew.

    Of fewer than six waves nothing is said: first MLX's free buffers grow to their limit.
    """
    if tally.ended.total() != made:
        raise HeliumError(f"{made} requests were made, and {tally.ended.total()} ended")
    if tally.wrong:
        raise HeliumError(f"{len(tally.wrong)} requests went wrong, the first {tally.wrong[0]}")
    if len(sizes) < 6:
        return
    third = len(sizes) // 3
    for name, slack in SLACK.items():
        middle, last = (max(size[name] for size in part) for part in (sizes[third : 2 * third], sizes[2 * third :]))
        if last > middle + slack:
            raise HeliumError(f"{name} grew from {middle:,} to {last:,}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script and return its exit status."""
    parser = argparse.ArgumentParser(
        description="Load a server with clients that stream, stall, hang up and come back."
    )
    parser.add_argument("--model", default="demo", help="directory, Hub repository or 'demo' (default: %(default)s)")
    parser.add_argument("--dtype", default="float32", help="what to compute in (default: %(default)s)")
    parser.add_argument("--waves", type=int, default=9, help="waves, in the first third of which the server is ended")
    parser.add_argument("--clients", type=int, default=500, help="clients at once (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="what requests are drawn from")
    options = parser.parse_args(argv)
    return run_command(lambda: load_server(options))


if __name__ == "__main__":
    sys.exit(main())
