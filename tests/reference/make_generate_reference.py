"""Stores the ids of transformers' `model.generate`: `python tests/reference/make_generate_reference.py`.

Needs the extra `parity`. Writes `generate.json`: for each of `GENERATE_CASES`, a prompt, options and what comes of
them with the weights of `tests/tiny_checkpoints.py`, which are the same everywhere.
"""

import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import make_reference  # noqa: E402
import tiny_checkpoints  # noqa: E402

FILE = HERE / "generate.json"

PROMPTS = [[1, 20, 30, 20, 30, 20], [1, 44], [1, 11, 12, 13, 14, 15, 16, 17, 18], [1]]


def padded(rows: list[list[int]], pad: int) -> tuple[list[list[int]], list[list[int]]]:
    """Return rows padded on the left, and their mask."""
    longest = max(map(len, rows))
    return (
        [[pad] * (longest - len(row)) + row for row in rows],
        [[0] * (longest - len(row)) + [1] * len(row) for row in rows],
    )


@dataclass
class Case:
    """A call of `generate`: rows to pad on the left, whether their mask is given, and the options."""

    options: Mapping[str, object]
    prompts: list[list[int]] = field(default_factory=lambda: PROMPTS)
    pad: int = 3
    with_mask: bool = True
    mask: list[list[int]] | None = None

    def inputs(self) -> tuple[list[list[int]], list[list[int]] | None]:
        """Return ids and mask."""
        ids, mask = padded(self.prompts, self.pad)
        return ids, (self.mask or mask) if self.with_mask else None


# Ids 2 (eos) and 3 (pad) are the checkpoint's own. Others were chosen so that rows end at different steps.
GENERATE_CASES: dict[str, Case] = {
    "one row": Case({"max_new_tokens": 30}, [PROMPTS[0]]),
    "batch": Case({"max_new_tokens": 30}),
    "no eos": Case({"max_new_tokens": 30, "eos_token_id": None}),
    "ragged eos list": Case({"max_new_tokens": 40, "eos_token_id": [2, 5, 17, 40, 41, 42, 43]}),
    "many eos, pad elsewhere": Case({"max_new_tokens": 40, "eos_token_id": list(range(4, 96, 9)), "pad_token_id": 90}),
    "pad defaults to the first eos": Case(
        {"max_new_tokens": 40, "eos_token_id": list(range(4, 96, 9)), "pad_token_id": None}
    ),
    "min_new_tokens": Case({"max_new_tokens": 20, "min_new_tokens": 12, "eos_token_id": list(range(4, 96, 5))}),
    "min_length": Case({"max_new_tokens": 20, "min_length": 15, "eos_token_id": list(range(4, 96, 5))}),
    "min_new_tokens and min_length": Case(
        {"max_new_tokens": 20, "min_length": 25, "min_new_tokens": 2, "eos_token_id": list(range(4, 96, 5))}
    ),
    "max_length": Case({"max_length": 16}),
    "max_length and max_new_tokens": Case({"max_length": 12, "max_new_tokens": 10}),
    "default length": Case({}),
    "repetition_penalty": Case({"max_new_tokens": 30, "repetition_penalty": 1.9}),
    "repetition_penalty below 1": Case({"max_new_tokens": 30, "repetition_penalty": 0.5}),
    "repetition_penalty without padding": Case({"max_new_tokens": 30, "repetition_penalty": 2.5}, [PROMPTS[2]] * 2),
    "repetition_penalty passes over padding": Case(
        {"max_new_tokens": 9, "repetition_penalty": 3.0, "pad_token_id": 33, "eos_token_id": None}, pad=33
    ),
    "no_repeat_ngram_size counts padding": Case(
        {"max_new_tokens": 9, "no_repeat_ngram_size": 1, "pad_token_id": 33, "eos_token_id": None}, pad=33
    ),
    "no_repeat_ngram_size 1": Case({"max_new_tokens": 30, "no_repeat_ngram_size": 1, "eos_token_id": None}),
    "no_repeat_ngram_size 2": Case({"max_new_tokens": 50, "no_repeat_ngram_size": 2, "eos_token_id": None}),
    "no_repeat_ngram_size 3": Case({"max_new_tokens": 50, "no_repeat_ngram_size": 3, "eos_token_id": None}),
    "both, with min_new_tokens": Case(
        {"max_new_tokens": 30, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3, "min_new_tokens": 8}
        | {"eos_token_id": list(range(4, 96, 4))}
    ),
    "sequence_bias": Case(
        {"max_new_tokens": 12, "sequence_bias": [[[20], 3.0], [[30], -8.0], [[20, 33], 30.0], [[20, 33, 33], 30.0]]}
    ),
    "bad_words_ids": Case({"max_new_tokens": 30, "bad_words_ids": [[i] for i in range(4, 96, 3)] + [[20, 30], [2]]}),
    "suppress_tokens": Case({"max_new_tokens": 30, "suppress_tokens": list(range(4, 96, 2))}),
    "begin_suppress_tokens": Case(
        {"max_new_tokens": 5, "begin_suppress_tokens": list(range(4, 90)), "eos_token_id": None}
    ),
    "forced_bos_token_id": Case({"max_new_tokens": 9, "forced_bos_token_id": 41, "eos_token_id": None}, [[1]]),
    "forced_eos_token_id": Case({"max_new_tokens": 9, "forced_eos_token_id": 41, "eos_token_id": None}),
    "exponential_decay_length_penalty": Case(
        {"max_new_tokens": 20, "exponential_decay_length_penalty": [3, 2.5], "eos_token_id": [2, 50]}
    ),
    "encoder_repetition_penalty": Case({"max_new_tokens": 12, "encoder_repetition_penalty": 3.0, "eos_token_id": None}),
    "encoder_no_repeat_ngram_size": Case(
        {"max_new_tokens": 12, "encoder_no_repeat_ngram_size": 1, "repetition_penalty": 0.5, "eos_token_id": None}
    ),
    "guidance_scale": Case({"max_new_tokens": 12, "guidance_scale": 2.5, "eos_token_id": None}),
    "guidance_scale without a cache": Case({"max_new_tokens": 9, "guidance_scale": 0.3, "use_cache": False}),
    "beams": Case({"max_new_tokens": 12, "num_beams": 3, "eos_token_id": list(range(4, 96, 9))}),
    "beams, the best of them": Case({"max_new_tokens": 9, "num_beams": 4, "num_return_sequences": 3}),
    "beams that prefer short texts": Case(
        {"max_new_tokens": 12, "num_beams": 3, "length_penalty": -2.0, "eos_token_id": list(range(4, 96, 5))}
    ),
    "beams that stop early": Case(
        {"max_new_tokens": 12, "num_beams": 2, "early_stopping": True, "eos_token_id": list(range(4, 96, 5))}
    ),
    "beams that never stop early": Case(
        {"max_new_tokens": 12, "num_beams": 2, "early_stopping": "never", "length_penalty": 2.0}
        | {"eos_token_id": list(range(4, 96, 5))}
    ),
    "beams with processors": Case(
        {
            "max_new_tokens": 10,
            "num_beams": 3,
            "no_repeat_ngram_size": 2,
            "repetition_penalty": 1.5,
            "min_new_tokens": 5,
        }
        | {"eos_token_id": list(range(4, 96, 5))}
    ),
    "beams without a cache": Case({"max_new_tokens": 7, "num_beams": 3, "use_cache": False, "eos_token_id": None}),
    "without a cache": Case({"max_new_tokens": 20, "use_cache": False}),
    "mask inferred from pad ids": Case({"max_new_tokens": 20}, with_mask=False),
    "mask not inferred where pad is eos": Case(
        {"max_new_tokens": 20, "pad_token_id": 3, "eos_token_id": 3}, with_mask=False
    ),
    "mask of ones over pad ids": Case({"max_new_tokens": 20}, [[1, 3, 3, 20], [1, 30, 3, 9]], mask=[[1] * 4] * 2),
    "mask with holes": Case(
        {"max_new_tokens": 20, "repetition_penalty": 1.5},
        [[1, 20, 30, 40, 50], [9, 1, 30, 3, 9]],
        mask=[[1, 1, 0, 1, 1], [0, 1, 1, 0, 1]],
    ),
    "right padding": Case({"max_new_tokens": 20}, [[1, 20, 30, 3], [1, 20, 30, 40]], mask=[[1, 1, 1, 0], [1] * 4]),
    "settings switched off by None": Case(
        {"max_new_tokens": 9, "repetition_penalty": None, "no_repeat_ngram_size": None, "min_new_tokens": None}
    ),
    "settings of others that are off": Case(
        {"max_new_tokens": 9, "num_beams": 1, "num_beam_groups": 1, "length_penalty": 1.0, "logits_processor": None}
        | {"num_return_sequences": 1, "return_dict_in_generate": False, "top_k": 50}
    ),
}


def main() -> int:
    """Write the file and return an exit status."""
    stored = {}
    with tempfile.TemporaryDirectory() as directory:
        model = make_reference.load_reference(tiny_checkpoints.write_checkpoint(Path(directory)))
        for name, case in GENERATE_CASES.items():
            ids, mask = case.inputs()
            generated = model.generate(  # pyright: ignore[reportCallIssue]
                torch.tensor(ids), attention_mask=None if mask is None else torch.tensor(mask), **case.options
            )
            stored[name] = {"ids": ids, "mask": mask, "options": case.options, "generated": generated.tolist()}
    stored["made with"] = {"transformers": transformers.__version__, "torch": torch.__version__}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in stored.items())
    FILE.write_text("{\n" + lines + "\n}\n")
    print(f"{FILE.name}: {len(GENERATE_CASES)} cases, {FILE.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
