"""Both sides of a comparison: what they load, and the logits that they give row by row."""

import json
import math
import shutil
import sys
from pathlib import Path
from typing import cast

import mlx.core as mx
import pytest
from compared_checkpoints import TEXTS, write_pair
from mlx.utils import tree_flatten
from tiny_checkpoints import CASES, write_checkpoint

import helium_mlx
from helium_mlx import CheckpointError, ComparisonError, compare
from helium_mlx.checkpoint.checkpoint import open_checkpoint
from helium_mlx.comparison import sides as compared_models
from helium_mlx.comparison.comparison import compare_all
from helium_mlx.comparison.sides import logits_of_any, logits_of_helium, open_side, parameter_count
from helium_mlx.comparison.text import documents_of
from helium_mlx.model.loading import load_model

Pair = tuple[Path, Path]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Two directories that mlx-lm opens as well."""
    directory = tmp_path_factory.mktemp("pair")
    paths = directory / "a", directory / "b"
    for source, path in zip(write_pair(directory), paths, strict=True):
        helium_mlx.convert(str(source), str(path), verify=False)
    return paths


def test_rows_come_one_after_another_at_their_lengths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compared_models, "HEAD_POSITIONS", 4)
    model = load_model(write_checkpoint(tmp_path, **CASES["helium-mqa-tied"]))
    ids = mx.array([[1, 5, 6, 7, 8], [1, 9, 10, 0, 0]])
    expected = mx.concatenate([model(ids[:1]).logits[0], model(ids[1:, :3]).logits[0]])
    for logits_of in (logits_of_helium(model), logits_of_any(lambda ids: model(ids).logits)):
        chunks = list(logits_of(ids, [5, 3]))
        assert [chunk.shape[0] for chunk in chunks] == [4, 4]
        assert mx.allclose(mx.concatenate(chunks), expected, atol=1e-5)


def test_the_head_never_sees_padding_nor_the_whole_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compared_models, "HEAD_POSITIONS", 3)
    model, seen = load_model(write_checkpoint(tmp_path)), []
    logits = model.logits
    monkeypatch.setattr(type(model), "logits", lambda self, h: (seen.append(h.shape[0]), logits(h))[1])
    list(logits_of_helium(model)(mx.array([[1, 5, 6, 7], [1, 9, 0, 0]]), [4, 2]))
    assert seen == [3, 3]


def test_weights_are_counted_unpacked(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", **CASES["helium-gqa-bias"])
    expected = load_model(source).num_parameters()
    assert parameter_count(open_checkpoint(source)) == expected


def test_mlx_lm_on_both_sides_finds_what_we_find(pair: Pair) -> None:
    pytest.importorskip("mlx_lm")
    ours = compare(*pair, texts=TEXTS, window=8)
    theirs = compare(*(f"mlx-lm:{path}" for path in pair), texts=TEXTS, window=8)
    assert ours.mean_kl == pytest.approx(theirs.mean_kl, rel=1e-4)
    assert ours.perplexity_ratio == pytest.approx(theirs.perplexity_ratio, rel=1e-4)
    assert ours.top1_agreement == theirs.top1_agreement
    for mine, other in ((ours.reference, theirs.reference), (ours.candidate, theirs.candidate)):
        assert (other.program, mine.program) == ("mlx-lm", "helium_mlx")
        assert other.name == f"mlx-lm:{mine.name}"
        assert (other.weight_bytes, other.bits_per_weight) == (mine.weight_bytes, mine.bits_per_weight)
        assert other.dtype == mine.dtype == "float32"


def test_one_checkpoint_is_at_no_distance_from_itself_in_mlx_lm(pair: Pair, tmp_path: Path) -> None:
    pytest.importorskip("mlx_lm")
    helium_mlx.convert(str(pair[0]), str(tmp_path / "q"), quantize=True, q_group_size=32, verify=False)
    for path in (pair[0], tmp_path / "q"):
        report = compare(path, f"mlx-lm:{path}", texts=TEXTS, window=8)
        assert report.mean_kl is not None and report.mean_kl < 1e-8
        assert report.candidate.dtype == "float32"
        assert report.candidate.bits_per_weight == pytest.approx(report.reference.bits_per_weight)


def test_mlx_lm_computes_in_the_dtype_of_the_comparison(pair: Pair, tmp_path: Path) -> None:
    pytest.importorskip("mlx_lm")
    helium_mlx.convert(str(pair[0]), str(tmp_path / "half"), dtype="bfloat16", verify=False)
    side = open_side(f"mlx-lm:{tmp_path / 'half'}")
    assert side.dtype == mx.bfloat16
    for dtype in (mx.float32, mx.bfloat16):
        (logits,) = side.load(dtype)(mx.array([[1, 5]]), [2])
        assert logits.dtype == dtype


@pytest.fixture
def foreign(pair: Pair, tmp_path: Path) -> Path:
    """A model that this package does not have, with the demo's tokenizer."""
    qwen2 = pytest.importorskip("mlx_lm.models.qwen2")
    values: dict[str, object] = {
        "model_type": "qwen2", "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64,
        "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-6, "vocab_size": 2048,
        "max_position_embeddings": 64, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    model = qwen2.Model(qwen2.ModelArgs.from_dict(values))
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(tmp_path / "model.safetensors"), weights, {"format": "mlx"})
    (tmp_path / "config.json").write_text(json.dumps(values))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(pair[0] / name, tmp_path)
    return tmp_path


def test_what_only_mlx_lm_opens_can_be_either_side(pair: Pair, foreign: Path) -> None:
    there = compare(pair[0], f"mlx-lm:{foreign}", texts=TEXTS)
    back = compare(f"mlx-lm:{foreign}", pair[0], texts=TEXTS)
    assert there.window == back.window == 64
    assert there.candidate.program == back.reference.program == "mlx-lm"
    assert there.candidate_bits_per_byte == pytest.approx(back.reference_bits_per_byte, rel=1e-5)
    assert there.reference_bits_per_byte == pytest.approx(back.candidate_bits_per_byte, rel=1e-5)


def test_windows_of_mlx_lm_begin_with_what_its_tokenizer_begins_with(pair: Pair) -> None:
    pytest.importorskip("mlx_lm")
    side = open_side(f"mlx-lm:{pair[0]}")
    assert side.bos == 1
    assert side.encode("A cat.") == open_side(str(pair[0])).encode("A cat.")


def edit_config(directory: Path, **values: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_what_mlx_lm_cannot_open_is_one_line(pair: Pair, foreign: Path) -> None:
    edit_config(foreign, model_type="nonsense")
    with pytest.raises(ComparisonError, match=r"mlx-lm cannot open the model \(Model type nonsense not supported"):
        compare(pair[0], f"mlx-lm:{foreign}", texts=TEXTS)
    (foreign / "tokenizer.json").write_text("{}")
    with pytest.raises(ComparisonError, match="mlx-lm cannot open the tokenizer"):
        compare(pair[0], f"mlx-lm:{foreign}", texts=TEXTS)
    (foreign / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no model\*\.safetensors is there"):
        compare(pair[0], f"mlx-lm:{foreign}", texts=TEXTS)
    (foreign / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read"):
        compare(pair[0], f"mlx-lm:{foreign}", texts=TEXTS)


def test_a_weight_that_is_not_finite_is_named_for_mlx_lm_too(pair: Pair, foreign: Path) -> None:
    path = foreign / "model.safetensors"
    weights = cast("dict[str, mx.array]", mx.load(str(path)))
    weights["model.norm.weight"] = mx.full(weights["model.norm.weight"].shape, math.nan)
    mx.eval(weights)
    mx.save_safetensors(str(path), weights, {"format": "mlx"})
    with pytest.raises(ComparisonError, match=r"its weight model\.norm\.weight holds NaN or infinity"):
        compare(pair[0], f"mlx-lm:{foreign}", texts=TEXTS)


def test_code_of_a_checkpoint_is_not_run(pair: Pair, foreign: Path) -> None:
    edit_config(foreign, model_file="evil.py")
    (foreign / "evil.py").write_text(f"open({str(foreign / 'ran')!r}, 'w')")
    with pytest.raises(CheckpointError, match="no code of a checkpoint is run"):
        compare(pair[0], f"mlx-lm:{foreign}", texts=TEXTS)
    assert not (foreign / "ran").exists()


def test_ids_that_the_model_has_no_rows_for_are_refused(pair: Pair, foreign: Path) -> None:
    edit_config(foreign, vocab_size=300)
    with pytest.raises(ComparisonError, match="and the model has 300 rows"):
        compare(pair[0], f"mlx-lm:{foreign}", texts=TEXTS)


def test_layers_are_measured_between_checkpoints_of_this_package_only(pair: Pair, foreign: Path) -> None:
    with pytest.raises(ComparisonError, match="two checkpoints of this package, without mlx-lm:"):
        next(compare_all(pair[0], [f"mlx-lm:{foreign}"], documents_of(TEXTS), by_layers=True))


def test_a_missing_mlx_lm_is_one_line(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlx_lm.utils", None)
    with pytest.raises(ComparisonError, match=r"needs mlx-lm, which is not there .*pip install mlx-lm$"):
        open_side(f"mlx-lm:{pair[0]}")
