"""Measures scoring beside `mlx_lm.evaluate`: requests a second on questions with 4 choices after 5 examples.

    python examples/evaluate_speed.py --data-dir tests/evaluation/data

Both score the same requests of the same checkpoint in float32, in turns, and must agree. Needs mlx-lm and the extra
`evaluate`. In `m_mmlu_de`, as in MMLU, all questions have the same examples; in the others each has its own.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import helium_mlx
from helium_mlx.evaluation.answers import Answers
from helium_mlx.evaluation.data import DataSource
from helium_mlx.evaluation.language_model import HeliumLM
from helium_mlx.evaluation.running import SEED, load_tasks, quiet_harness

TASKS = ("m_mmlu_de", "arc_easy_letters", "arc_easy")
SHOTS = 5


def requests_of(task: str, data_dir: Path) -> list[Any]:
    """Return the requests of a task's questions."""
    loaded = load_tasks([task], None, SHOTS, DataSource(data_dir))["tasks"][task]
    loaded.set_fewshot_seed(seed=SEED)
    loaded.build_all_requests(rank=0, world_size=1)
    return loaded.instances


def seconds(score: Callable[[list[Any]], object], requests: list[Any]) -> float:
    """Return how long it takes to score the requests."""
    start = time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()):
        score(requests)
    return time.perf_counter() - start


def main() -> None:
    """Print a line a task."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="demo", help="checkpoint directory, or demo")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    from mlx_lm.evaluate import MLXLM

    with tempfile.TemporaryDirectory() as folder, quiet_harness(), contextlib.redirect_stderr(io.StringIO()):
        directory = str(Path(folder, "float32"))
        helium_mlx.convert(options.model, directory, dtype="float32")
        ours, theirs = HeliumLM(directory), cast("Any", MLXLM)(directory, use_chat_template=False)
        for task in TASKS:
            requests = requests_of(task, options.data_dir)
            pairs = zip(ours.loglikelihood(requests), theirs.loglikelihood(requests), strict=True)
            apart = max(abs(a[0] - b[0]) for a, b in pairs)
            times: list[tuple[float, float]] = []
            for _ in range(options.rounds):
                ours.answers = Answers()
                times.append((seconds(ours.loglikelihood, requests), seconds(theirs.loglikelihood, requests)))
            rates = [len(requests) / statistics.median(column) for column in zip(*times, strict=True)]
            ratio = statistics.median(other / own for own, other in times)
            print(
                f"{task}: {len(requests)} requests; {rates[0]:.0f} a second here, {rates[1]:.0f} with mlx_lm.evaluate: "
                f"{ratio:.1f} times as many; log-probabilities within {apart:.1e}"
            )


if __name__ == "__main__":
    main()
