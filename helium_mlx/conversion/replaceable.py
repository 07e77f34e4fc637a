"""What `--overwrite` may delete: a checkpoint, and nothing that somebody may have put beside one."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from helium_mlx.files.names import CHAT_TEMPLATES_DIRECTORY, CONFIG_FILE, WEIGHTS_FILE, is_companion
from helium_mlx.files.untrusted import FileProblem, read_json_object
from helium_mlx.model_card.record import CONVERSION_FILE, is_record

_WEIGHTS = re.compile(r"model[\w.-]*\.safetensors")
_CHECKPOINT_FILE = re.compile(
    r"model[\w.-]*\.safetensors(\.index\.json)?|(config|generation_config|conversion|tokenizer)\.json"
    r"|tokenizer[\w.-]*\.model|README\.md|(LICEN[CS]E|NOTICE)[\w.-]*|\.gitattributes|\.DS_Store"
)


def foreign(directory: Path) -> str | None:
    """Return what of a directory is not a checkpoint's, None if all of it is, or there is nothing in it."""
    names = set(_names(directory))
    strangers = sorted(name for name in names if not (_CHECKPOINT_FILE.fullmatch(name) or is_companion(name)))
    if strangers:
        return f"holds {strangers[0].rstrip('/')}, which is no part of a checkpoint"
    if not names or _object(directory / CONVERSION_FILE, is_record) or _is_checkpoint(directory, names):
        return None
    return (
        f"has neither a {CONVERSION_FILE} nor a {CONFIG_FILE} of a model beside a {WEIGHTS_FILE}, and so is not a "
        "checkpoint"
    )


def _names(directory: Path) -> Iterator[str]:
    """Yield files by their names in a checkpoint's records, and what is none by the name with a slash after it."""
    for path in directory.iterdir():
        if path.is_symlink() or not path.is_dir():
            yield path.name
        elif path.name == CHAT_TEMPLATES_DIRECTORY:
            yield from (f"{path.name}/{inner.name}{'/' if inner.is_dir() else ''}" for inner in path.iterdir())
        else:
            yield f"{path.name}/"


def _is_checkpoint(directory: Path, names: Collection[str]) -> bool:
    def names_a_model(config: Mapping[str, object]) -> bool:
        return "model_type" in config or "architectures" in config

    return any(map(_WEIGHTS.fullmatch, names)) and _object(directory / CONFIG_FILE, names_a_model)


def _object(path: Path, holds: Callable[[Mapping[str, object]], bool]) -> bool:
    """Whether there is a JSON object in a file of which that holds."""
    try:
        return holds(read_json_object(path))
    except FileProblem:
        return False
