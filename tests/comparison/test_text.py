import hashlib
import importlib.util
import io
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import EXAMPLES

from helium_mlx import ComparisonError
from helium_mlx.comparison import text as comparison_text
from helium_mlx.comparison.figures import OwnText
from helium_mlx.comparison.text import (
    LANGUAGES,
    TEXTS_DIRECTORY,
    Document,
    bundled_documents,
    documents_of_files,
    encoded_text,
)


@given(st.lists(st.integers(2, 900), min_size=1, max_size=200), st.integers(1, 50))
def test_every_id_is_in_one_window_after_the_first_id(ids: list[int], size: int) -> None:
    text = encoded_text([ids, ids[:3]], first=1, size=size)
    assert all(window.ids[0] == 1 and 1 <= window.length <= size for window in text.windows)
    lengths = [window.length for window in text.windows if window.document == 0]
    assert max(lengths) - min(lengths) <= 1
    assert len(lengths) == -(-len(ids) // size)
    assert text.positions == len(ids) + len(ids[:3])
    joined = [window.ids[1:] for window in text.windows if window.document == 0]
    assert sorted(token for window in joined for token in window) == sorted(ids)


def test_windows_follow_the_text_and_never_reach_into_the_next() -> None:
    text = encoded_text([list(range(10, 17)), [20, 21]], first=1, size=3)
    assert sorted((window.document, window.ids) for window in text.windows) == [
        (0, [1, 10, 11]), (0, [1, 12, 13]), (0, [1, 14, 15, 16]), (1, [1, 20, 21]),
    ]  # fmt: skip
    assert text.by_window("abcdefghi") == ["abc", "de", "fg", "hi"]


def test_there_are_a_few_hundred_words_of_prose_and_stories_in_six_languages() -> None:
    documents = bundled_documents()
    assert list(dict.fromkeys(document.language for document in documents)) == list(LANGUAGES)
    for language in LANGUAGES:
        prose = (TEXTS_DIRECTORY / f"{language}.txt").read_text(encoding="utf-8")
        assert 350 <= len(prose.split()) <= 600
        own = [document for document in documents if document.language == language]
        assert len(own) == 8
        assert all(document.text and document.text == document.text.strip() for document in own)
        assert re.search(r"\d", prose)


def test_languages_can_be_picked_and_are_not_read_twice() -> None:
    assert bundled_documents(["fr", "en", "fr"]) == [
        document for language in ("fr", "en") for document in bundled_documents() if document.language == language
    ]


def test_the_stories_are_what_the_example_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    spec = importlib.util.spec_from_file_location("held_out_stories", EXAMPLES / "held_out_stories.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main([str(tmp_path)]) == 0
    for language in LANGUAGES:
        stored = TEXTS_DIRECTORY / "stories" / f"{language}.txt"
        assert (tmp_path / f"{language}.txt").read_bytes() == stored.read_bytes()


def test_a_file_is_a_document_under_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.txt").write_bytes("\ufeffÉté\r\n\r\nund so".encode())
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"from a pipe\n")))
    one, two = str(tmp_path / "a/x.txt"), str(tmp_path / "b/x.txt")
    digests = [hashlib.sha256(data).hexdigest() for data in (Path(one).read_bytes(), b"from a pipe\n")]
    assert documents_of_files([one, "-"]) == [
        Document("x", "Été\r\n\r\nund so", OwnText("x.txt", digests[0])),
        Document("stdin", "from a pipe\n", OwnText("stdin", digests[1])),
    ]
    documents = documents_of_files([one, two, str(tmp_path / "b/../a/x.txt")])
    # Never the whole path, which is of this machine, and may go into a card.
    assert [document.language for document in documents] == ["a/x.txt", "b/x.txt"]
    assert documents_of_files([one])[0].bytes == len("Été\r\n\r\nund so".encode())


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "has no text in it"),
        (b" \n\t\n", "has no text in it"),
        (b"\xef\xbb\xbf", "has no text in it"),
        (b"caf\xe9", r"is not UTF-8 \(byte 0xe9 at position 3\); convert it first"),
        (b"\xef\xbb\xbfcaf\xe9", r"is not UTF-8 \(byte 0xe9 at position 6\)"),
        (b"a" * 101, "give a part of it"),
    ],
)
def test_files_that_are_no_text_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, said: str
) -> None:
    monkeypatch.setattr(comparison_text, "MAX_TEXT_BYTES", 100)
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(ComparisonError, match=said):
        documents_of_files([str(tmp_path / "x")])


def test_files_that_cannot_be_read_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ComparisonError, match=r"cannot be read \("):
            documents_of_files([str(path)])
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ComparisonError, match="standard input is closed"):
        documents_of_files(["-"])
