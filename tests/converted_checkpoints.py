"""Sources of conversions, and what several conversions after one another make of them."""

import shutil
from pathlib import Path

from tiny_checkpoints import CASES, write_checkpoint

import helium_mlx
from helium_mlx.files.hub import DEMO_DIRECTORY

Options = dict[str, object]

VOCABULARY = 2048
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")

# Sizes that every group size divides. mlx-lm's Helium takes head_dim for hidden_size / heads.
SIZES: Options = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "head_dim": 32,
}

SOURCES: dict[str, Options | None] = {
    "demo": None,
    "helium": {**CASES["helium-gqa-bias"], **SIZES},
    "llama": {**CASES["llama-gqa-bias"], **SIZES},
    "tied llama": {**CASES["llama-mqa-tied"], **SIZES},
}


def converted_into(directory: Path, source: str, steps: list[Options]) -> Path:
    return converted_from(source_in(directory / "source", SOURCES[source]), directory, steps)


def converted_from(path: Path, directory: Path, steps: list[Options]) -> Path:
    for number, options in enumerate(steps):
        helium_mlx.convert(str(path), str(directory / str(number)), **options)  # pyright: ignore[reportArgumentType]
        path = directory / str(number)
    return path


def source_in(directory: Path, overrides: Options | None) -> Path:
    """The demo, or a random checkpoint with the demo's tokenizer."""
    if overrides is None:
        return DEMO_DIRECTORY
    write_checkpoint(directory, **overrides)
    for name in TOKENIZER_FILES:
        shutil.copy(DEMO_DIRECTORY / name, directory)
    return directory
