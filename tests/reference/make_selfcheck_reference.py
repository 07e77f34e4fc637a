"""Stores what transformers computes for `selfcheck`: `python tests/reference/make_selfcheck_reference.py`.

Needs the extra `parity` (torch, transformers). Writes `helium_mlx/selfcheck_reference.safetensors`; the functions that
run a case with transformers are what the parity grid compares with, too.
"""

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
import torch
import transformers
from safetensors.torch import save_file

from helium_mlx.checkpoint.layout import Architecture
from helium_mlx.diagnostics.selfcheck_cases import (
    HEAD_CASES,
    Case,
    HeadCase,
    calls,
    grid,
    head_inputs,
    write_case,
    write_checkpoint,
)
from helium_mlx.diagnostics.selfcheck_runs import REFERENCE_FILE, HeadOutputs, at_probes, sampled, stores_details

# Several threads for such small matrices only wait for each other.
torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

AUTO_CLASSES = {
    "Model": transformers.AutoModel,
    "ForCausalLM": transformers.AutoModelForCausalLM,
    "ForSequenceClassification": transformers.AutoModelForSequenceClassification,
    "ForTokenClassification": transformers.AutoModelForTokenClassification,
}


@dataclass(frozen=True)
class Reference:
    """transformers' outputs of a case, as `CaseOutputs` holds them."""

    logits: mx.array
    hidden_states: mx.array
    attentions: list[mx.array]


def to_torch(array: mx.array) -> torch.Tensor:
    """Return a tensor; ids and positions as torch wants them."""
    tensor = torch.from_numpy(np.array(array))
    return tensor if tensor.is_floating_point() or tensor.dtype == torch.bool else tensor.long()


def to_mlx(tensor: torch.Tensor) -> mx.array:
    """Return a float32 array."""
    return mx.array(tensor.detach().float().numpy())


def load(
    directory: Path, architecture: Architecture = "ForCausalLM", *, dtype: str = "float32", attention: str = "eager"
) -> transformers.PreTrainedModel:
    """Return transformers' model of a checkpoint."""
    model = AUTO_CLASSES[architecture].from_pretrained(
        directory, dtype=getattr(torch, dtype), attn_implementation=attention
    )
    return model.eval()


def run_reference(case: Case, *, dtype: str = "float32") -> Reference:
    """Run a case of the grid with transformers."""
    # Its step-by-step attention adds a boolean mask, as 0 and 1; only the fused one masks with it.
    attention = "sdpa" if case.mask == "4-D boolean mask" else "eager"
    with tempfile.TemporaryDirectory() as directory:
        model = load(write_case(Path(directory), case), dtype=dtype, attention=attention)
    cache = None
    logits, hidden_states, attentions = [], [], []
    for call in calls(case):
        mask = None if call.attention_mask is None else to_torch(call.attention_mask)
        with torch.no_grad():
            output = model(
                input_ids=to_torch(call.input_ids),
                attention_mask=mask,
                position_ids=None if call.position_ids is None else to_torch(call.position_ids),
                past_key_values=cache,
                use_cache=case.mask != "packed positions",
                output_hidden_states=True,
                output_attentions=attention == "eager",
            )
        cache = output.past_key_values
        logits.append(output.logits)
        hidden_states.append(torch.stack(output.hidden_states))
        if attention == "eager":
            attentions.append(to_mlx(torch.stack(output.attentions)))
    return Reference(to_mlx(torch.cat(logits, dim=1)), to_mlx(torch.cat(hidden_states, dim=2)), attentions)


def run_head_reference(case: HeadCase) -> HeadOutputs:
    """Run a head's case with transformers, with the gradients of all parameters."""
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = write_checkpoint(Path(directory), case.config_values, case.architecture)
        model = load(checkpoint, case.architecture)
    inputs = {name: to_torch(value) for name, value in head_inputs(case).items()}
    output = model(**inputs, use_cache=False)
    output.loss.backward()
    gradients = {name: to_mlx(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    return HeadOutputs(to_mlx(output.loss), to_mlx(output.logits), gradients)


def main() -> int:
    """Write the file and return an exit status."""
    stored: dict[str, mx.array] = {}
    for case in grid():
        reference = run_reference(case)
        stored[f"{case.name}.logits"] = at_probes(reference.logits, case.mask)
        if stores_details(case):
            stored[f"{case.name}.hidden_states"] = at_probes(reference.hidden_states, case.mask)
            # The last token of the first row, which is never padding.
            stored[f"{case.name}.attentions"] = reference.attentions[-1][:, :1, :, -1, :]
    for case in HEAD_CASES:
        run = run_head_reference(case)
        stored[f"{case.name}.loss"] = run.loss
        stored[f"{case.name}.logits"] = run.logits if run.logits.ndim == 2 else at_probes(run.logits, case.padding)
        if case.gradients:
            stored |= {f"{case.name}.gradient.{name}": sampled(g) for name, g in run.gradients.items()}
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in stored.items()}
    save_file(tensors, REFERENCE_FILE, {"made_with": json.dumps(versions)})
    print(f"{REFERENCE_FILE.name}: {len(stored)} tensors, {REFERENCE_FILE.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
