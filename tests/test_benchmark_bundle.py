"""The benchmark runs on a tiny model, and does not measure two programs that say different things."""

import sys
from pathlib import Path

import pytest
from bundle_samples import write_text_checkpoint
from processes import EXAMPLES

sys.path.insert(0, str(EXAMPLES))

import benchmark_bundle


def arguments(directory: Path) -> list[str]:
    source = write_text_checkpoint(directory, max_position_embeddings=64, num_hidden_layers=1)
    return ["--model", str(source), "--contexts", "4", "30", "4000", "--tokens", "5", "--runs", "2"]


def test_every_context_that_fits_has_a_row_for_prompt_and_decoding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark_bundle.main(arguments(tmp_path)) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith("|")][2:]
    assert [row[0] for row in rows] == ["| prompt of 4", "| decode after 4", "| prompt of 30", "| decode after 30"]
    assert all(float(row[3].removesuffix(" |")) > 0 for row in rows)
    assert "Opening and checking took" in lines[-1]


def test_programs_that_part_are_not_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_bundle = benchmark_bundle.run_bundle

    def wrong(*arguments: object) -> object:
        found, rates = run_bundle(*arguments)  # pyright: ignore[reportArgumentType]
        return [*found[:-1], -1], rates

    monkeypatch.setattr(benchmark_bundle, "run_bundle", wrong)
    assert benchmark_bundle.main(arguments(tmp_path)) == 1
    assert "part at token 5 after 4" in capsys.readouterr().err
