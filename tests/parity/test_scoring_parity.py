"""`score` against the log-probabilities that transformers' logits give, live, in float32; needs the extra `parity`."""

import sys
from pathlib import Path
from typing import Any, cast

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

sys.path.insert(0, str(Path(__file__).parent.parent / "reference"))

import make_reference  # noqa: E402
from tiny_checkpoints import CASES, write_checkpoint  # noqa: E402

from helium_mlx import HeliumTokenizer, score  # noqa: E402
from helium_mlx.files.hub import DEMO_DIRECTORY  # noqa: E402
from helium_mlx.model.loading import load_model  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore::UserWarning")]

TOKENIZER = HeliumTokenizer.from_pretrained(DEMO_DIRECTORY)
TEXT = "One day, a girl named Lily found a needle in her room.\nIt was difficult to play with it, because — ouch! 🪡"


def expected_logprobs(directory: Path, tokens: list[int]) -> list[float]:
    reference: Any = make_reference.load_reference(directory)
    with torch.no_grad():
        logits = reference(torch.tensor([tokens])).logits[0].double()
    picked = torch.log_softmax(logits, dim=-1)[:-1].gather(1, torch.tensor(tokens[1:])[:, None])
    return cast("list[float]", picked[:, 0].tolist())


def test_the_demo(tmp_path: Path) -> None:
    del tmp_path
    model = load_model(DEMO_DIRECTORY, dtype="float32")
    result = score(model, TOKENIZER, TEXT, prefill_step_size=13)
    assert result.logprobs[1:] == pytest.approx(expected_logprobs(DEMO_DIRECTORY, result.tokens), abs=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_tiny_checkpoints(tmp_path: Path, name: str) -> None:
    directory = write_checkpoint(tmp_path, **cast("dict[str, Any]", CASES[name]))
    model = load_model(directory, dtype="float32")
    tokens = [(7 * n * n + 3) % model.config.vocab_size for n in range(model.config.max_position_embeddings)][:150]
    result = score(model, TOKENIZER, tokens, prefill_step_size=40)
    assert result.logprobs[1:] == pytest.approx(expected_logprobs(directory, tokens), abs=1e-4)
