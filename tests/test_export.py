import json
from pathlib import Path

import pytest
from bundle_samples import write_text_checkpoint

from helium_mlx.export import main


def test_a_bundle_is_made_and_summed_up_on_standard_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = write_text_checkpoint(tmp_path / "source", num_hidden_layers=1)
    assert main(["--model", str(source), "--output", str(tmp_path / "bundle"), "--context", "64"]) == 0
    out, err = capfd.readouterr()
    assert out == ""
    assert "2 functions for" in err
    assert "a context of 64" in err
    assert "verified with 4 prompts" in err


def test_json_is_the_report_and_nothing_else(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = write_text_checkpoint(tmp_path / "source", num_hidden_layers=1)
    arguments = ["--model", str(source), "--output", str(tmp_path / "bundle"), "--context", "64", "--no-verify"]
    assert main([*arguments, "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["context"] == 64
    assert json.loads(out)["error"] is None
    assert "not verified" in err
