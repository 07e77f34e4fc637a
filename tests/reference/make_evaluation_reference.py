"""Stores what lm-eval's `hf` class answers with transformers in float32: `evaluation.json`.

    python tests/reference/make_evaluation_reference.py

Needs the extras `evaluate` and `parity`. What is asked stands in `tests/evaluated_checkpoints.py`.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import torch
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedTokenizerFast

torch.set_num_threads(1)

sys.path.insert(0, str(Path(__file__).parent.parent))

from evaluated_checkpoints import SHOTS, STORED, STORED_TASKS, TEXTS, checkpoints, instances, requests, tasks_asked  # noqa: E402


def reference(directory: Path, **options: Any) -> Any:  # noqa: ANN401
    """Return lm-eval's own class of a checkpoint, in float32."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(directory / "tokenizer.json"), bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    return cast("Any", HFLM)(
        pretrained=str(directory), tokenizer=tokenizer, dtype="float32", device="cpu", **{"batch_size": 8, **options}
    )


def rolling_scores(directory: Path, **options: Any) -> list[float]:  # noqa: ANN401
    """Return the rolling scores of the texts, without the BOS that `hf` would put before the tokenizer's own."""
    lm = reference(directory, add_bos_token=False, **options)
    return [
        float(score) for score in lm.loglikelihood_rolling(instances("loglikelihood_rolling", [(t,) for t in TEXTS]))
    ]


def main() -> None:
    """Write the file."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, directory in checkpoints(Path(folder)).items():
            # The demo's own context is long, and its texts short.
            options = {"max_length": 320} if name == "demo" else {}
            lm = reference(directory, **options)
            asked = requests()
            found[name] = {
                "loglikelihood": lm.loglikelihood(asked["loglikelihood"]),
                "generate_until": lm.generate_until(asked["generate_until"]),
                "loglikelihood_rolling": rolling_scores(directory, **options),
                "tasks": {str(shots): tasks_asked(lm, shots, tasks=STORED_TASKS) for shots in SHOTS},
            }
    STORED.write_text(json.dumps(found, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
