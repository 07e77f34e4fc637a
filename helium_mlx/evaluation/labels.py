"""What several models are called beside each other, in a table or a picture, and the folders of their results."""

from collections.abc import Sequence

from helium_mlx.comparison.sides import MLX_LM_PREFIX


def labels_of(names: Sequence[str], place: str = "") -> list[str]:
    """Return for each name the shortest end of its path that no other one has.

    `place` is the revision and subfolder of the first. What opens a model, and that place, are named where needed.
    """
    forms = [_forms(name, place if index == 0 else "") for index, name in enumerate(names)]
    longest = max(map(len, forms))
    # A name of few parts is the same at all further levels.
    levels = [[own[min(level, len(own) - 2 + level % 2)] for own in forms] for level in range(longest)]
    labels = [
        next((level[index] for level in levels if level.count(level[index]) == 1), forms[index][-1])
        for index in range(len(names))
    ]
    return labels if len(set(labels)) == len(names) else full_names(names, place)


def full_names(names: Sequence[str], place: str = "") -> list[str]:
    """Return the names with the place of the first."""
    return [f"{name}{place if index == 0 else ''}" for index, name in enumerate(names)]


def folders_of(names: Sequence[str]) -> list[str]:
    """Return for each full name a folder's name as lm-eval makes it, no two of them alike on any file system."""
    from lm_eval.utils import sanitize_model_name

    folders: list[str] = []
    for name in names:
        safe = sanitize_model_name(name)
        # A folder's name for itself, or for the one above, is none for a new one.
        safe = safe if safe.strip(".") else "model"
        candidates = (safe if number == 1 else f"{safe}_{number}" for number in range(1, len(names) + 2))
        taken = {folder.lower() for folder in folders}
        folders.append(next(each for each in candidates if each.lower() not in taken))
    return folders


def _forms(name: str, place: str) -> list[str]:
    """Return the ends of a path, the shortest first, each without and with what opens it and its place."""
    bare = name.removeprefix(MLX_LM_PREFIX)
    program = MLX_LM_PREFIX if bare != name else ""
    parts = (bare.rstrip("/") or bare).split("/")
    ends = ["/".join(parts[-count:]) for count in range(1, len(parts) + 1)]
    return [form for end in ends for form in (end, f"{program}{end}{place}")]
