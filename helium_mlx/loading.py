"""`load`: a model and its tokenizer, by the name that a user gives."""

from pathlib import Path

import mlx.core as mx

from helium_mlx.checkpoint import load_model, open_checkpoint
from helium_mlx.hub import resolve
from helium_mlx.model import HeliumForCausalLM
from helium_mlx.tokenizer import HeliumTokenizer


def load(
    path_or_repo: str | Path, *, revision: str | None = None, dtype: str | mx.Dtype | None = None
) -> tuple[HeliumForCausalLM, HeliumTokenizer]:
    """Return the model and the tokenizer of a checkpoint directory, a Hub repository, or "demo".

    `revision` is a branch, tag or commit of the repository. `dtype` (bfloat16, float16, float32) is what to compute
    in; None is the checkpoint's own, or float32 for quantized weights on the CPU.

    Raises CheckpointError, ConfigError, QuantizationError or TokenizerError, one line that says what to do.
    """
    directory = resolve(path_or_repo, revision=revision)
    # The weights last: what is wrong with anything else need not wait for them.
    checkpoint = open_checkpoint(directory)
    tokenizer = HeliumTokenizer.from_pretrained(directory)
    return load_model(checkpoint, dtype=dtype), tokenizer
