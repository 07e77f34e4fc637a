"""Two tiny checkpoints with the demo's tokenizer, and a comparison of models as slow and as plain as can be."""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import mlx.core as mx
from tiny_checkpoints import write_checkpoint

from helium_mlx.files.hub import DEMO_DIRECTORY
from helium_mlx.files.names import WEIGHTS_FILE
from helium_mlx.model.helium import HeliumForCausalLM

TEXTS: dict[str, list[str]] = {
    "en": ["Once upon a time there was a boy called Arthur who lived near the harbour.", "“Not a word!” he said."],
    "fr": ["Il était une fois une fille qui s'appelait Zoé.\nElle habitait près de la gare, avec 2 chats."],
    "de": ["Um drei Uhr trafen sich Anna und Felix im Hafen.", "Ja.", "Ein Fuchs rief: „Kalt, kalt!“"],
}


NOISE = 0.05


def write_pair(directory: Path, **overrides: object) -> tuple[Path, Path]:
    """Write a reference, and a candidate whose every weight is off by up to `NOISE` of the largest in its tensor."""
    values: dict[str, object] = {"vocab_size": 2048, "num_hidden_layers": 2, **overrides}
    reference = write_checkpoint(directory / "reference", **values)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO_DIRECTORY / name, reference)
    candidate = Path(shutil.copytree(reference, directory / "candidate"))
    weights = cast("dict[str, mx.array]", mx.load(str(candidate / WEIGHTS_FILE)))
    keys = mx.random.split(mx.random.key(0), len(weights))
    changed = {
        name: weight + NOISE * mx.abs(weight).max() * mx.random.uniform(-1, 1, weight.shape, key=key)
        for (name, weight), key in zip(weights.items(), keys, strict=True)
    }
    mx.save_safetensors(str(candidate / WEIGHTS_FILE), changed, {"format": "pt"})
    return reference, candidate


@dataclass
class Plain:
    """What the slow comparison finds at each position of each window, in double precision."""

    reference: list[list[float]]
    candidate: list[list[float]]
    divergences: list[list[float]]
    agreements: list[list[bool]]


def plain_comparison(reference: HeliumForCausalLM, candidate: HeliumForCausalLM, windows: list[list[int]]) -> Plain:
    """Run each window alone through both models, and sum over the vocabulary in Python."""
    plain = Plain([], [], [], [])
    for ids in windows:
        p_rows, q_rows = (
            [plain_logprobs(row) for row in cast("list[list[float]]", model(mx.array([ids[:-1]])).logits[0].tolist())]
            for model in (reference, candidate)
        )
        plain.reference.append([-row[token] for row, token in zip(p_rows, ids[1:], strict=True)])
        plain.candidate.append([-row[token] for row, token in zip(q_rows, ids[1:], strict=True)])
        pairs = list(zip(p_rows, q_rows, strict=True))
        plain.divergences.append([plain_kl(p, q) for p, q in pairs])
        plain.agreements.append([p.index(max(p)) == q.index(max(q)) for p, q in pairs])
    return plain


def plain_logprobs(logits: Sequence[float]) -> list[float]:
    """Return the log-softmax."""
    largest = max(logits)
    total = largest + math.log(math.fsum(math.exp(x - largest) for x in logits))
    return [x - total for x in logits]


def plain_kl(p: Sequence[float], q: Sequence[float]) -> float:
    """Return KL(p || q) of log-probabilities."""
    return math.fsum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))


def flat(rows: Sequence[Sequence[float]]) -> list[float]:
    """Return the rows as one list."""
    return [value for row in rows for value in row]
