"""`load`: a model and its tokenizer, by the name that a user gives."""

import warnings
from pathlib import Path

import mlx.core as mx

from helium_mlx.checkpoint.checkpoint import Checkpoint, open_checkpoint
from helium_mlx.checkpoint.config import HeliumConfig
from helium_mlx.files.hub import resolve
from helium_mlx.model.helium import (
    HeliumForCausalLM,
    HeliumForSequenceClassification,
    HeliumForTokenClassification,
    HeliumModel,
)
from helium_mlx.model.serialization import build_model
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

AutoConfig = HeliumConfig
AutoModel = HeliumModel
AutoModelForCausalLM = HeliumForCausalLM
AutoModelForSequenceClassification = HeliumForSequenceClassification
AutoModelForTokenClassification = HeliumForTokenClassification
AutoTokenizer = HeliumTokenizer


def load(
    path_or_repo: str | Path,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    dtype: str | mx.Dtype | None = None,
) -> tuple[HeliumForCausalLM, HeliumTokenizer]:
    """Return the model and the tokenizer of a checkpoint directory, a Hub repository, or "demo".

    `revision` is a branch, tag or commit of the repository; `subfolder`, the folder in it that holds the checkpoint.
    `dtype` (bfloat16, float16, float32) is what to compute in; None is the checkpoint's own, or float32 for quantized
    weights on the CPU.

    Raises CheckpointError, ConfigError, QuantizationError or TokenizerError, one line that says what to do.
    """
    directory = resolve(path_or_repo, revision=revision, subfolder=subfolder)
    # The weights last: what is wrong with anything else need not wait for them.
    checkpoint = open_checkpoint(directory)
    tokenizer = HeliumTokenizer.from_pretrained(directory)
    return load_model(checkpoint, dtype=dtype), tokenizer


def load_model(checkpoint: Checkpoint | str | Path, *, dtype: str | mx.Dtype | None = None) -> HeliumForCausalLM:
    """Return the causal LM of a checkpoint, opened or named by its directory, weights evaluated, ready to run.

    `dtype` is one of bfloat16, float16, float32; None is the checkpoint's own, or float32 for quantized weights on
    the CPU (see `helium_mlx/backend.py`). Quantized codes stay as they are; scales, biases and everything else take it.
    """
    opened = checkpoint if isinstance(checkpoint, Checkpoint) else open_checkpoint(checkpoint)
    for sentence in opened.warnings:
        warnings.warn(f"{opened.directory}: {sentence}", stacklevel=3)
    return build_model(HeliumForCausalLM, opened, dtype)
