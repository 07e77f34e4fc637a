"""Our class of lm-eval against stored answers of its `hf` class, request by request; what it refuses."""

import json
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
from evaluated_checkpoints import (
    COMPLETED,
    CONTEXT,
    NAMES,
    SHOTS,
    STORED,
    STORED_TASKS,
    TEXTS,
    TOLERANCE,
    checkpoints,
    instances,
    requests,
    tasks_asked,
)

from helium_mlx.evaluation.language_model import HeliumLM


@cache
def stored() -> dict[str, Any]:
    return cast("dict[str, Any]", json.loads(STORED.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return checkpoints(tmp_path_factory.mktemp("evaluated"))


def opened(directory: Path, batch_size: int = 16) -> HeliumLM:
    return HeliumLM(str(directory), dtype="float32", batch_size=batch_size, max_length=CONTEXT)


def same(found: object, expected: object) -> bool:
    """Return whether two answers are the same: texts and flags exactly, log-probabilities within 1e-4."""
    if isinstance(expected, list) and isinstance(found, (list, tuple)):
        return found[1] is expected[1] and abs(found[0] - expected[0]) <= TOLERANCE
    return found == expected


@pytest.mark.parametrize("batch_size", [1, 16])
@pytest.mark.parametrize("name", NAMES)
def test_log_likelihoods_and_greedy_flags_are_those_of_hf(
    directories: dict[str, Path], name: str, batch_size: int
) -> None:
    asked = requests()["loglikelihood"]
    found = opened(directories[name], batch_size).loglikelihood(asked)
    for request, answer, expected in zip(asked, found, stored()[name]["loglikelihood"], strict=True):
        assert same(answer, expected), request.args


@pytest.mark.parametrize("batch_size", [1, 16])
@pytest.mark.parametrize("name", NAMES)
def test_completions_are_those_of_hf(directories: dict[str, Path], name: str, batch_size: int) -> None:
    found = opened(directories[name], batch_size).generate_until(requests()["generate_until"])
    for (context, options), answer, expected in zip(COMPLETED, found, stored()[name]["generate_until"], strict=True):
        assert answer == expected, (context[:40], options)


@pytest.mark.parametrize("batch_size", [1, 16])
@pytest.mark.parametrize("name", NAMES)
def test_rolling_scores_are_those_of_hf_after_one_bos(directories: dict[str, Path], name: str, batch_size: int) -> None:
    lm = opened(directories[name], batch_size)
    asked = instances("loglikelihood_rolling", [(text,) for text in TEXTS])
    for text, found, expected in zip(
        TEXTS, lm.loglikelihood_rolling(asked), stored()[name]["loglikelihood_rolling"], strict=True
    ):
        # A sum over so many tokens, of which hf adds up each window in float32.
        assert found == pytest.approx(expected, abs=TOLERANCE, rel=1e-6), text[:40]


@pytest.mark.parametrize("shots", SHOTS)
@pytest.mark.parametrize("name", NAMES)
def test_every_published_task_has_the_answers_and_figures_of_hf(
    directories: dict[str, Path], name: str, shots: int
) -> None:
    found = tasks_asked(opened(directories[name]), shots, tasks=STORED_TASKS)
    expected = stored()[name]["tasks"][str(shots)]
    assert list(found["answers"]) == list(expected["answers"])
    for task, answers in expected["answers"].items():
        for answer, other in zip(found["answers"][task], answers, strict=True):
            assert same(answer, other), task
    assert found["figures"] == expected["figures"]
