from pathlib import Path

import mlx.core as mx
import pytest

from helium_mlx.comparison.text import bundled_documents
from helium_mlx.errors import QuantizationError
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.quantization.calibration import HELD_OUT, TEXTS_DIRECTORY, WINDOW_TOKENS, Windows, calibration_windows
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

Demo = tuple[HeliumForCausalLM, HeliumTokenizer]


def windows(demo: Demo, text: str | Path | None = None) -> Windows:
    model, tokenizer = demo
    return calibration_windows(tokenizer, model.config, text)


def test_every_window_has_exactly_one_bos_and_is_no_longer_than_allowed(demo: Demo) -> None:
    made = windows(demo)
    for window in (*made.fitted, *made.held_out):
        ids = window[0].tolist()
        assert ids[0] == 1  # pyright: ignore[reportIndexIssue]
        assert ids.count(1) == 1  # pyright: ignore
        assert 2 <= len(ids) <= WINDOW_TOKENS  # pyright: ignore[reportArgumentType]


def test_windows_of_a_document_joined_are_its_ids(demo: Demo, tmp_path: Path) -> None:
    text = "Once upon a time there was a boy. " * 200
    (tmp_path / "t.txt").write_text(text)
    made = windows(demo, tmp_path / "t.txt")
    every = sorted([*made.fitted, *made.held_out], key=lambda window: -window.shape[1])
    assert sum(window.shape[1] - 1 for window in every) == len(demo[1].encode(text.strip())) - 1


def test_the_package_has_text_in_six_languages() -> None:
    texts = [path.read_text(encoding="utf-8") for path in sorted(TEXTS_DIRECTORY.glob("*.txt"))]
    assert len(texts) == 6
    assert all(len(text.split()) > 1000 for text in texts)


def test_no_paragraph_is_one_that_compare_evaluates_on() -> None:
    # Stories are made of the same sentences, but none is the same story.
    theirs = {paragraph for document in bundled_documents() for paragraph in document.text.split("\n")}
    for path in TEXTS_DIRECTORY.glob("*.txt"):
        ours = {line for line in path.read_text(encoding="utf-8").split("\n") if len(line.split()) > 30}
        assert ours
        assert not theirs & ours


def test_a_share_of_the_windows_is_held_out(demo: Demo) -> None:
    made = windows(demo)
    assert len(made.held_out) == (len(made.fitted) + len(made.held_out)) // HELD_OUT
    held_out = {tuple(window[0].tolist()) for window in made.held_out}  # pyright: ignore[reportArgumentType]
    assert not any(tuple(window[0].tolist()) in held_out for window in made.fitted)  # pyright: ignore


def test_a_byte_order_mark_is_no_text(demo: Demo, tmp_path: Path) -> None:
    text = "Once upon a time.\n\n\nIl était une fois."
    for name, encoding in (("plain.txt", "utf-8"), ("marked.txt", "utf-8-sig")):
        (tmp_path / name).write_text(text, encoding=encoding)
    plain, marked = (windows(demo, tmp_path / name) for name in ("plain.txt", "marked.txt"))
    assert all(mx.array_equal(a, b).item() for a, b in zip(plain.fitted, marked.fitted, strict=True))


def test_a_file_without_end_is_read_to_the_limit_only(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("helium_mlx.quantization.calibration.MAX_TEXT_BYTES", 1000)
    with pytest.raises(QuantizationError, match=r"/dev/zero: has over"):
        windows(demo, "/dev/zero")


def test_two_windows_are_one_each(demo: Demo, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("Once upon a time.\n\n\nIl était une fois.", encoding="utf-8")
    made = windows(demo, tmp_path / "t.txt")
    assert (len(made.fitted), len(made.held_out)) == (1, 1)


@pytest.mark.parametrize(
    ("contents", "said"), [(b"Once.", "makes 1 windows"), (b"\xff\xfe", "is not UTF-8"), (None, "cannot be read")]
)
def test_a_text_that_does_not_do_is_named(demo: Demo, tmp_path: Path, contents: bytes | None, said: str) -> None:
    path = tmp_path / "t.txt"
    if contents is not None:
        path.write_bytes(contents)
    with pytest.raises(QuantizationError, match=said) as caught:
        windows(demo, path)
    assert "t.txt" in str(caught.value)
