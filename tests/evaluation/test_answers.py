"""Answers that outlive their process: whole lines are kept, a torn one is cut off, others' files are left alone."""

from pathlib import Path

import pytest

from helium_mlx.errors import HeliumError
from helium_mlx.evaluation.answers import HEADER, Answers, key_of, require_answers

KEPT = {"a": "Paris\n“é”", "b": (-1.2345678901234567e-5, True), "c": -3.5}


def test_answers_come_back_as_they_were(tmp_path: Path) -> None:
    with Answers(tmp_path / "new" / "answers.jsonl") as answers:
        answers.add(KEPT)
    with Answers(tmp_path / "new" / "answers.jsonl") as answers:
        assert {key: answers.get(key) for key in KEPT} == KEPT
        assert answers.get("d") is None


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_torn_line_is_asked_again_and_harms_no_other(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "answers.jsonl"
    with Answers(path) as answers:
        answers.add(KEPT)
    path.write_bytes(path.read_bytes()[:-cut])
    with Answers(path) as answers:
        assert len(answers) < 3
        answers.add({"new": "first after the tear"})
        answers.add(KEPT)
    with Answers(path) as answers:
        assert {key: answers.get(key) for key in KEPT} == KEPT
        assert answers.get("new") == "first after the tear"


def test_lines_that_are_no_answers_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(HEADER + b'\xff\xfe\n[]\n["a"]\n["a", [1, 2]]\n["a", null]\n{"a": 1}\n["b", "x"]\n')
    with Answers(path) as answers:
        assert (answers.get("a"), answers.get("b")) == (None, "x")


@pytest.mark.parametrize("cut", range(len(HEADER)))
def test_a_file_torn_in_its_first_line_begins_anew(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(HEADER[:cut])
    require_answers(path)
    with Answers(path) as answers:
        answers.add(KEPT)
    assert path.read_bytes().startswith(HEADER)
    with Answers(path) as answers:
        assert {key: answers.get(key) for key in KEPT} == KEPT


@pytest.mark.parametrize(
    "data",
    [
        b'{"question": "?", "answer": "yes"}\n{"question": "torn',
        b'["a", "an answer of another program"]\n',
        b'{"format": "helium_mlx answers", "version": 2}\n',
        b"no line at all",
        b"\x00",
    ],
)
def test_a_file_of_others_is_refused_and_left_as_it_is(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(data)
    with pytest.raises(HeliumError, match=r"answers\.jsonl begins with .*, no answers .*name another output"):
        require_answers(path)
    with pytest.raises(HeliumError, match="no answers"), Answers(path):
        pass
    assert path.read_bytes() == data


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HeliumError, match="answers cannot be kept there"), Answers(tmp_path / "file" / "answers.jsonl"):
        pass


def test_keys_differ_where_anything_differs() -> None:
    assert len({key_of("a", 1), key_of("a", 2), key_of("a"), key_of("a1"), key_of(["a", 1])}) == 5
