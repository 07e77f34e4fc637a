"""The names of a checkpoint's files, for every room: transformers' own."""

import os
import re
from pathlib import Path

CONFIG_FILE = "config.json"
GENERATION_CONFIG_FILE = "generation_config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

# What says that an adapter lies beside; never applied.
ADAPTER_CONFIG_FILE = "adapter_config.json"

TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
CHAT_TEMPLATE_FILE = "chat_template.jinja"
LEGACY_CHAT_TEMPLATE_FILE = "chat_template.json"

SPECIAL_TOKENS_MAP_FILE = "special_tokens_map.json"

# Those that programs write, and their paths into: what is published goes through `local_paths.published`.
SETTINGS_FILES = (TOKENIZER_CONFIG_FILE, SPECIAL_TOKENS_MAP_FILE, LEGACY_CHAT_TEMPLATE_FILE)

# A chat template's, which is a text: what is published goes through `local_paths.published_text`.
TEMPLATE_SUFFIX = ".jinja"

# Where transformers saves the templates that have a name, one a file.
CHAT_TEMPLATES_DIRECTORY = "additional_chat_templates"

# What may stand beside a tokenizer's own file; each goes wherever that goes, but for paths in it byte for byte.
COMPANION_FILES = (
    TOKENIZER_CONFIG_FILE,
    SPECIAL_TOKENS_MAP_FILE,
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    CHAT_TEMPLATE_FILE,
    LEGACY_CHAT_TEMPLATE_FILE,
)
_NAMED_TEMPLATE = re.compile(rf"{CHAT_TEMPLATES_DIRECTORY}/[\w-][\w.-]*\.jinja")


def is_companion(name: str) -> bool:
    """Return whether a name, relative to a checkpoint, is that of a file that may stand beside a tokenizer's own."""
    return name in COMPANION_FILES or _NAMED_TEMPLATE.fullmatch(name) is not None


def companion_files(directory: Path) -> list[Path]:
    """Return what stands beside a tokenizer's own file: settings, vocabularies, chat templates."""
    templates = directory / CHAT_TEMPLATES_DIRECTORY
    # A link would lead out of the checkpoint.
    named = sorted(templates.iterdir()) if templates.is_dir() and not templates.is_symlink() else []
    paths = [*(directory / name for name in COMPANION_FILES), *named]
    return [path for path in paths if os.path.lexists(path) and is_companion(relative_name(path, directory))]


def relative_name(path: Path, directory: Path) -> str:
    """Return how a checkpoint's records call one of its files: its path from there, with slashes.

    A licence from a folder above has its name alone, as where it is copied to.
    """
    return path.relative_to(directory).as_posix() if path.is_relative_to(directory) else path.name
