"""What our class of lm-eval and its `hf` class are both asked, and of which checkpoints; without torch.

The random checkpoints have the demo's tokenizer, and a context so short that examples overflow it.
"""

import shutil
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from tiny_checkpoints import LLAMA, write_checkpoint

from helium_mlx.evaluation.data import DataSource
from helium_mlx.evaluation.published import published_tasks
from helium_mlx.evaluation.running import ask, load_tasks, quiet_harness
from helium_mlx.files.hub import DEMO_DIRECTORY

DATA = Path(__file__).parent / "evaluation" / "data"
STORED = Path(__file__).parent / "reference" / "evaluation.json"

NAMES = ("demo", "helium", "llama")
SHOTS = (0, 5)

# Questions of each task.
LIMIT = 2

# Each row of the page in both forms; of MMLU's 57 subjects, what is stored has two.
ALL_TASKS = published_tasks("both")
STORED_TASKS = [
    *(task for task in ALL_TASKS if task not in ("mmlu", "mmlu_continuation")),
    *(f"mmlu_{subject}{form}" for subject in ("anatomy", "virology") for form in ("", "_continuation")),
]

# Tokens of the random checkpoints' context.
CONTEXT = 320

TOLERANCE = 1e-4

_LONG = "Lily and Tom were in the park. "
SCORED = [
    (context, continuation)
    for context in ("Once upon a time", "One day, Lily ", "", "  ", "Été — “ouch!”\n", _LONG * 60, "x" * 900)
    for continuation in (" there was", " a little girl named Lily. She liked to play.", "x", " 🪡", "\n")
]
TEXTS = ["Once upon a time there was a fox.", "", _LONG * 80, "\n", "Été", _LONG]
COMPLETED = [
    (context, options)
    for context in ("Once upon a time", "One day,", "Q: who?\nA:", "Es war einmal", _LONG * 60)
    for options in (
        {"until": [".", "\n"], "max_gen_toks": 40},
        {"until": ["the", " Lily"], "max_gen_toks": 60},
        {"until": [], "max_gen_toks": 5},
        {"until": ". ", "max_gen_toks": 30, "do_sample": False, "temperature": 0.0},
    )
]


def checkpoints(directory: Path) -> dict[str, Path]:
    """Write the random checkpoints; return all, by their names."""
    shape: dict[str, object] = {"vocab_size": 2048, "num_hidden_layers": 2, "max_position_embeddings": CONTEXT}
    families: dict[str, dict[str, object]] = {"helium": {}, "llama": {**LLAMA, "num_key_value_heads": 2}}
    written = {name: write_checkpoint(directory / name, **shape, **own) for name, own in families.items()}
    for path in written.values():
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(DEMO_DIRECTORY / file, path)
    return {"demo": DEMO_DIRECTORY, **written}


def instances(kind: str, arguments: Sequence[tuple[Any, ...]]) -> list[Instance]:
    """Return requests as lm-eval makes them."""
    return [Instance(cast(Any, kind), {}, each, index, ("own", index, 1)) for index, each in enumerate(arguments)]


def requests() -> dict[str, list[Instance]]:
    """Return requests of each kind, beside those of the tasks."""
    return {
        "loglikelihood": instances("loglikelihood", SCORED),
        "generate_until": instances("generate_until", COMPLETED),
    }


@cache
def _loaded(tasks: tuple[str, ...], shots: int) -> dict[str, Any]:
    return load_tasks(tasks, None, shots, DataSource(DATA))


def tasks_asked(lm: LM, shots: int, *, tasks: Sequence[str] = ALL_TASKS) -> dict[str, Any]:
    """Return every task's figures and every answer, on our own data."""
    with quiet_harness():
        found = ask(lm, _loaded(tuple(tasks), shots), limit=LIMIT, log_samples=True)
    figures = {
        task: {name: value for name, value in values.items() if "," in name}
        for task, values in cast("Mapping[str, Mapping[str, object]]", found["results"]).items()
    }
    answers = {
        task: [answer for row in rows for (answer,) in row["resps"]]
        for task, rows in cast("Mapping[str, list[Mapping[str, Any]]]", found["samples"]).items()
    }
    return {"figures": figures, "answers": answers}
