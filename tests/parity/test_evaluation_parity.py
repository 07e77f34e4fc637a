"""Our class of lm-eval beside its `hf` class, live, in float32, request by request; needs the extra `parity`.

python -m pytest -m parity tests/parity/test_evaluation_parity.py
"""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("accelerate")

sys.path.insert(0, str(Path(__file__).parent.parent / "reference"))

import make_evaluation_reference
from evaluated_checkpoints import (
    CONTEXT,
    NAMES,
    SHOTS,
    TOLERANCE,
    checkpoints,
    instances,
    tasks_asked,
)
from tiny_checkpoints import write_checkpoint

from helium_mlx.evaluation.language_model import HeliumLM

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

# The demo is the larger: one at a time, its requests take minutes. HELIUM_MLX_EVERY_CASE=1 asks them so too.
BATCH_SIZES = (1, 16)
QUICK = {"demo": (16,)}

LONG = "One day, Lily and Tom went to the park. They saw a big dog. "


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return checkpoints(tmp_path_factory.mktemp("evaluated"))


def require_same(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """Fail unless texts, flags and figures are equal; return how far the log-probabilities are apart."""
    furthest = 0.0
    assert list(found["answers"]) == list(expected["answers"])
    for task, answers in expected["answers"].items():
        for answer, other in zip(found["answers"][task], answers, strict=True):
            if isinstance(other, str):
                assert answer == other, task
                continue
            furthest = max(furthest, abs(answer[0] - other[0]))
            assert answer[1] == other[1], task
    assert furthest <= TOLERANCE
    assert found["figures"] == expected["figures"]
    return furthest


@pytest.mark.parametrize("shots", SHOTS)
@pytest.mark.parametrize("name", NAMES)
def test_every_published_task_in_both_forms(directories: dict[str, Path], name: str, shots: int) -> None:
    # The random ones have a context of so many tokens.
    expected = tasks_asked(make_evaluation_reference.reference(directories[name], max_length=CONTEXT), shots)
    every_case = os.environ.get("HELIUM_MLX_EVERY_CASE") == "1"
    for batch_size in BATCH_SIZES if every_case else QUICK.get(name, BATCH_SIZES):
        lm = HeliumLM(str(directories[name]), dtype="float32", batch_size=batch_size, max_length=CONTEXT)
        furthest = require_same(tasks_asked(lm, shots), expected)
        print(f"{name}, {shots} shots, batch size {batch_size}: log-probabilities within {furthest:.1e}")


@pytest.mark.parametrize("family", ["helium", "llama"])
def test_texts_longer_than_the_context_of_4096(tmp_path: Path, directories: dict[str, Path], family: str) -> None:
    small = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    shape = {"vocab_size": 2048, "num_hidden_layers": 1, "max_position_embeddings": 4096, "model_type": family, **small}
    directory = write_checkpoint(tmp_path, **shape, architectures=[f"{family.capitalize()}ForCausalLM"])
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (directory / file).write_bytes((directories["demo"] / file).read_bytes())
    hf, lm = make_evaluation_reference.reference(directory, batch_size=1), HeliumLM(str(directory), dtype="float32")
    assert hf.max_length == lm.max_length == 4096
    scored = instances(
        "loglikelihood", [(LONG * 300, continuation) for continuation in (" There", " It was red.", "x")]
    )
    for found, expected in zip(lm.loglikelihood(scored), hf.loglikelihood(scored), strict=True):
        assert found == (pytest.approx(expected[0], abs=TOLERANCE), expected[1])
    completed = instances("generate_until", [(LONG * 300, {"until": ["."], "max_gen_toks": 8})])
    assert lm.generate_until(completed) == hf.generate_until(completed)
    hf = make_evaluation_reference.reference(directory, batch_size=1, add_bos_token=False)
    rolled = instances("loglikelihood_rolling", [(LONG * 600,)])
    assert lm.loglikelihood_rolling(rolled) == pytest.approx(hf.loglikelihood_rolling(rolled), rel=1e-6)
