"""Stores what transformers computes, for the tests that run without it: `python tests/reference/make_reference.py`.

Needs the extra `parity` (torch, transformers). Writes `tiny.safetensors` (logits and hidden states of the checkpoints
in `tests/tiny_checkpoints.py`) and `demo.safetensors` (the same, and greedy ids, for the checkpoint in the package).
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

# Several threads for such small matrices only wait for each other.
torch.set_num_threads(1)

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import tiny_checkpoints  # noqa: E402

from helium_mlx.files.hub import DEMO_DIRECTORY  # noqa: E402

GREEDY_TOKENS = 200
TINY_PROMPT = [1, *(7 + 13 * i % 89 for i in range(39))]
DEMO_PROMPTS = {
    "en": "Once upon a time",
    "fr": "Il était une fois",
    "de": "Es war einmal",
    "it": "C'era una volta",
    "pt": "Era uma vez",
    "es": "Había una vez",
}


def load_reference(directory: Path, dtype: torch.dtype = torch.float32) -> transformers.PreTrainedModel:
    """Return transformers' model of a checkpoint, with attention computed step by step."""
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation="eager")
    return model.eval()


def outputs(model: transformers.PreTrainedModel, prompt: list[int]) -> dict[str, torch.Tensor]:
    """Return logits (L, V) and the hidden states (layers + 1, L, D) of a prompt."""
    with torch.no_grad():
        output = model(torch.tensor([prompt]), output_hidden_states=True)
    return {"logits": output.logits[0], "hidden_states": torch.cat(output.hidden_states)}


def greedy(model: transformers.PreTrainedModel, prompt: list[int], tokens: int = GREEDY_TOKENS) -> torch.Tensor:
    """Return the ids that follow a prompt under greedy decoding, eos ignored."""
    with torch.no_grad():
        ids = model.generate(  # pyright: ignore[reportCallIssue]
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=None,
        )
    return ids[0, len(prompt) :].to(torch.int32)


def main() -> int:
    """Write both files and return an exit status."""
    stored: dict[str, torch.Tensor] = {}
    with tempfile.TemporaryDirectory() as directory:
        for name, overrides in tiny_checkpoints.CASES.items():
            path = tiny_checkpoints.write_checkpoint(Path(directory) / name, **overrides)
            model = load_reference(path)
            stored |= {f"{name}.{key}": value for key, value in outputs(model, TINY_PROMPT).items()}
            stored[f"{name}.greedy"] = greedy(model, TINY_PROMPT)
    _save(stored, "tiny.safetensors")

    model = load_reference(DEMO_DIRECTORY)
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO_DIRECTORY)
    stored = {}
    for language, text in DEMO_PROMPTS.items():
        prompt = tokenizer(text)["input_ids"]
        stored[f"{language}.prompt"] = torch.tensor(prompt, dtype=torch.int32)
        stored[f"{language}.greedy"] = greedy(model, prompt)
        stored |= {f"{language}.{key}": value for key, value in outputs(model, prompt).items()}
    _save(stored, "demo.safetensors")
    return 0


def _save(tensors: dict[str, torch.Tensor], name: str) -> None:
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    metadata = {"made_with": json.dumps(versions)}
    save_file({key: value.contiguous() for key, value in tensors.items()}, HERE / name, metadata)
    print(f"{name}: {len(tensors)} tensors, {(HERE / name).stat().st_size} bytes")


if __name__ == "__main__":
    sys.exit(main())
