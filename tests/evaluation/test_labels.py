"""What models are called beside each other: no two alike, none longer than needed."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helium_mlx.evaluation.labels import folders_of, labels_of

NAMES = st.lists(st.text("ab/:.", min_size=1, max_size=7), min_size=1, max_size=5, unique=True)


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["demo"], ["demo"]),
        (["/models/helium-2b/"], ["helium-2b"]),
        (["a/model", "b/model", "c/other"], ["a/model", "b/model", "other"]),
        (["x/a/model", "y/a/model", "model"], ["x/a/model", "y/a/model", "model"]),
        (["demo", "./demo"], ["demo", "./demo"]),
        (["/far/away/model", "mlx-lm:/far/away/model"], ["model", "mlx-lm:model"]),
        (["mlx-lm:org/model", "mlx-lm:other"], ["model", "other"]),
    ],
)
def test_a_label_is_the_shortest_path_that_tells_models_apart(names: list[str], labels: list[str]) -> None:
    assert labels_of(names) == labels


def test_a_revision_is_named_where_the_path_is_the_same() -> None:
    assert labels_of(["org/model", "org/model"], "@q/4bit") == ["model@q/4bit", "model"]
    assert labels_of(["org/model", "org/other"], "@q/4bit") == ["model", "other"]


@settings(deadline=None)
@given(NAMES)
def test_no_two_labels_and_no_two_folders_are_alike(names: list[str]) -> None:
    assert len(set(labels_of(names))) == len(names)
    folders = folders_of(names)
    assert len({folder.lower() for folder in folders}) == len(names)
    assert all(folder not in (".", "..") and "/" not in folder for folder in folders)
