"""Ends evaluations at any moment and goes on with them: `python tests/evaluation/kills.py --kills 30`.

Every process runs the same command in the same directory. It is killed (SIGKILL) at a forward pass or in the middle of
writing answers, drawn at random; the last one may finish. Its figures must be those of a run that nothing ended.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

DATA = Path(__file__).parent / "data"
COMMAND = [
    *("--model", "demo", "--dtype", "float32", "--tasks", "arc_easy", "openbookqa_letters", "mkqa_de"),
    *("--data-dir", str(DATA), "--num-fewshot", "1", "--quiet", "--json"),
]  # fmt: skip

KILLED = """
import os, signal, sys
from helium_mlx import evaluate as _
from helium_mlx.evaluate import main
from helium_mlx.evaluation import answers
from helium_mlx.model.helium import HeliumForCausalLM

where, left = sys.argv[1], int(sys.argv[2])

def strike():
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

def logits(self, h, plain=HeliumForCausalLM.logits):
    if where == "pass":
        strike()
    return plain(self, h)

def write(file, data, plain=answers._write):
    if where == "write":
        plain(file, data[: len(data) // 2])
        strike()
        plain(file, data[len(data) // 2 :])
    else:
        plain(file, data)

HeliumForCausalLM.logits, answers._write = logits, write
sys.exit(main(sys.argv[3:]))
"""


def run(output: Path, limit: int, where: str = "nowhere", left: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command, which ends itself at the moment that is named."""
    command = [sys.executable, "-c", KILLED, where, str(left), *COMMAND, "--limit", str(limit), "--output", str(output)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def figures(output: str) -> object:
    """Return the figures in what the command printed."""
    return json.loads(output)["results"]


def check(kills: int, seed: int, folder: Path, *, limit: int = 16) -> int:
    """Kill so many times, then finish; return how many answers the last run found. Raises AssertionError.

    `limit` questions of each task are asked.
    """
    draw = random.Random(seed)
    whole = run(folder / "whole", limit)
    assert whole.returncode == 0, whole.stderr
    for _ in range(kills):
        # Of all that is left little is done each time.
        where, left = ("write", draw.randrange(1, 3)) if draw.random() < 0.5 else ("pass", draw.randrange(1, 8))
        ended = run(folder / "killed", limit, where, left)
        assert ended.returncode in (-signal.SIGKILL, 0), ended.stderr
        if ended.returncode == 0:
            # All answers are there: begin again.
            assert figures(ended.stdout) == figures(whole.stdout)
            (folder / "killed" / "answers.jsonl").unlink()
    found = (folder / "killed" / "answers.jsonl").read_bytes().count(b"\n") - 1
    last = run(folder / "killed", limit)
    assert last.returncode == 0, last.stderr
    assert figures(last.stdout) == figures(whole.stdout)
    return found


def main() -> None:
    """Kill as often as the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = check(options.kills, options.seed, Path(folder))
    print(f"{options.kills} runs ended; the last one found {found} answers and has the figures of a whole run")


if __name__ == "__main__":
    main()
