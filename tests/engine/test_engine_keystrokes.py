"""What a keystroke costs an engine, `examples/engine_keystrokes.py`, bounded; and that it counts what is computed."""

import sys
from itertools import pairwise

import pytest
from passes import Passes
from processes import EXAMPLES, run_example

sys.path.insert(0, str(EXAMPLES))

from engine_keystrokes import BEYOND, EVERY, judge, keystrokes, typed

from helium_mlx import HeliumEngine, HeliumError
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

Demo = tuple[HeliumForCausalLM, HeliumTokenizer]

TEXT = "Im Treppenhaus roch es nach Bohnerwachs, und im dritten Stock übte jemand dieselben vier Takte Klavier."


# The medians: new, computed, beyond. Inside a word nothing is new of what precedes it, and its last token is computed.
MEDIANS = {(): ["1", "1", "0"], ("--suggest",): ["0", "1", "1"]}


@pytest.mark.parametrize("flags", MEDIANS, ids=str)
def test_a_keystroke_computes_little_beyond_the_new_tokens_in_six_languages(flags: tuple[str, ...]) -> None:
    result = run_example("engine_keystrokes.py", "--characters", "90", *flags)
    assert (result.returncode, result.stderr) == (0, ""), result.stdout + result.stderr
    _, _, *rows = (line.strip("| ").split(" | ") for line in result.stdout.splitlines())
    assert [name for name, *_ in rows] == ["de", "en", "es", "fr", "it", "pt", "all"]
    assert rows[-1][3::2] == MEDIANS[flags]


def test_what_is_counted_is_what_the_model_runs(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = Passes(demo[0], monkeypatch)
    with HeliumEngine("demo", dtype="float32") as engine:
        tally = typed(engine, demo[1], TEXT)
    assert passes.lengths == tally.computed
    assert {rows for rows, _ in passes.shapes} == {1}
    judge(tally.beyond)


@pytest.mark.parametrize("suggest", [False, True])
def test_an_engine_that_keeps_nothing_is_found(demo: Demo, suggest: bool) -> None:
    with HeliumEngine("demo", dtype="float32", prefix_cache_bytes=0) as engine:
        tally = typed(engine, demo[1], TEXT[:30], suggest=suggest)
    assert tally.computed == tally.tokens
    with pytest.raises(HeliumError, match=f"tokens beyond the new ones.*expected at most {BEYOND}"):
        judge(tally.beyond)


def test_what_is_typed_is_edited_and_ends_as_the_text_with_the_letters_put_in() -> None:
    states = list(keystrokes(TEXT))
    place = EVERY // 2 - EVERY // 4
    assert states[-1] == f"{TEXT[:place]}e{TEXT[place:]}"
    assert any(len(after) < len(before) for before, after in pairwise(states))
