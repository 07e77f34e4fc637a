from pathlib import Path

import mlx.core as mx
import pytest
from compared_checkpoints import write_pair
from tiny_checkpoints import CASES, LLAMA

import helium_mlx
from helium_mlx import ComparisonError
from helium_mlx.checkpoint.checkpoint import open_checkpoint, read_tensors
from helium_mlx.comparison.sides import hybrid_model, layer_groups
from helium_mlx.model.loading import load_model
from helium_mlx.model.serialization import tensors_on_disk

IDS = mx.array([[1, 500, 600, 700, 800]])


@pytest.mark.parametrize("case", ["helium-mha", "helium-mqa-tied", "helium-gqa-bias", "helium-prelu"])
def test_groups_are_the_whole_model_and_do_not_overlap(tmp_path: Path, case: str) -> None:
    checkpoint = open_checkpoint(write_pair(tmp_path, **{**CASES[case], "num_hidden_layers": 11})[0])
    groups = layer_groups(checkpoint)
    outside = ["embedding and head"] if "tied" in case else ["embedding", "head"]
    assert [name for name in groups if name not in outside] == [
        "layer 0", "layer 1", "layers 2 to 3", "layer 4", "layer 5", "layers 6 to 7", "layer 8", "layers 9 to 10",
    ]  # fmt: skip
    assert set(outside) < set(groups)
    for name in read_tensors(checkpoint):
        assert sum(is_taken(name) for is_taken in groups.values()) == 1, name


def test_a_hybrid_has_the_tensors_that_were_named_and_the_others(tmp_path: Path) -> None:
    source, changed = map(open_checkpoint, write_pair(tmp_path, **CASES["helium-gqa-bias"]))
    theirs, ours = read_tensors(changed), read_tensors(source)
    for is_taken in layer_groups(source).values():
        found = tensors_on_disk(hybrid_model(source, changed, is_taken, dtype=mx.float32))
        assert set(found) == set(ours)
        for name, tensor in found.items():
            assert mx.array_equal(tensor, (theirs if is_taken(name) else ours)[name]), name


def test_all_and_nothing_taken_are_the_candidate_and_the_reference(tmp_path: Path) -> None:
    source, _ = write_pair(tmp_path, **LLAMA)
    helium_mlx.convert(str(source), str(tmp_path / "q"), recipe="mixed_3_6", q_group_size=32, verify=False)
    pair = open_checkpoint(source), open_checkpoint(tmp_path / "q")
    for is_taken, expected in ((lambda name: False, source), (lambda name: True, tmp_path / "q")):
        logits = hybrid_model(*pair, is_taken, dtype=mx.float32)(IDS).logits
        assert mx.array_equal(logits, load_model(expected, dtype="float32")(IDS).logits)


def test_a_quantized_layer_among_others_is_that_layer_rounded(tmp_path: Path) -> None:
    source, _ = write_pair(tmp_path, num_hidden_layers=3)
    helium_mlx.convert(str(source), str(tmp_path / "q"), quantize=True, q_group_size=32, verify=False)
    helium_mlx.convert(str(tmp_path / "q"), str(tmp_path / "rounded"), dequantize=True, verify=False)
    whole, packed, rounded = map(open_checkpoint, (source, tmp_path / "q", tmp_path / "rounded"))
    for is_taken in layer_groups(whole).values():
        logits, expected = (
            hybrid_model(whole, each, is_taken, dtype=mx.float32)(IDS).logits for each in (packed, rounded)
        )
        assert mx.allclose(logits, expected, rtol=0, atol=1e-4 * mx.abs(expected).max().item())  # pyright: ignore


def test_models_of_other_shapes_and_families_are_refused(tmp_path: Path) -> None:
    source = open_checkpoint(write_pair(tmp_path / "a")[0])
    for overrides in ({"num_hidden_layers": 3}, {"intermediate_size": 64}, LLAMA):
        other = open_checkpoint(write_pair(tmp_path / str(len(str(overrides))), **overrides)[0])
        with pytest.raises(ComparisonError, match="is not of the shape of"):
            hybrid_model(source, other, lambda name: False, dtype=mx.float32)
