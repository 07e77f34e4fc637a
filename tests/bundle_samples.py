"""Checkpoints that can be exported: a tiny model with a tiny tokenizer, whose pieces are more than its usual rows."""

from pathlib import Path
from typing import Literal

from tiny_checkpoints import write_checkpoint
from tokenizer_samples import write_json_checkpoint, write_sentencepiece_checkpoint

VOCAB_SIZE = 448


def write_text_checkpoint(
    directory: Path, *, tokenizer: Literal["json", "sentencepiece"] = "json", **overrides: object
) -> Path:
    """Write a causal LM and its tokenizer, as `tokenizer.json` or `tokenizer.model` alone; return the directory."""
    write_tokenizer = write_json_checkpoint if tokenizer == "json" else write_sentencepiece_checkpoint
    write_tokenizer(directory)
    return write_checkpoint(directory, vocab_size=VOCAB_SIZE, **overrides)
