from pathlib import Path

import mlx.core as mx
import pytest
from measures import relative_error
from tiny_checkpoints import CASES, write_checkpoint

from helium_mlx.checkpoint.checkpoint import open_checkpoint
from helium_mlx.model.loading import load_model
from helium_mlx.quantization.layer_walk import EmbeddingTable, walk

WINDOWS = [mx.array([[1, 10, 20, 30]]), mx.array([[1, 5, 7, 5, 9, 11]])]


@pytest.mark.parametrize("case", CASES)
def test_a_stream_with_the_source_s_weights_is_the_model(tmp_path: Path, case: str) -> None:
    directory = write_checkpoint(tmp_path, **CASES[case])
    with walk(open_checkpoint(directory)) as layers:
        stream = EmbeddingTable(layers, WINDOWS).stream(WINDOWS)
        layers.begin(stream)
        for stage in layers.stages():
            layers.advance(stream, stage, {path: layers.weight(path) for path in stage.paths})
        logits = [x @ layers.weight(layers.head_path).T for x in stream.inputs]
    model = load_model(directory, dtype="float32")
    for ids, ours in zip(WINDOWS, logits, strict=True):
        assert relative_error(ours, model(ids).logits) < 1e-5


def test_streams_do_not_disturb_each_other(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path)
    with walk(open_checkpoint(directory)) as layers:
        table = EmbeddingTable(layers, WINDOWS)
        alone, beside, other = (table.stream(WINDOWS) for _ in range(3))
        for stream in (alone, beside, other):
            layers.begin(stream)
        for stage in layers.stages():
            weights = {path: layers.weight(path) for path in stage.paths}
            layers.advance(alone, stage, weights)
            layers.advance(other, stage, {path: 2 * weight for path, weight in weights.items()})
            layers.advance(beside, stage, weights)
    assert mx.array_equal(alone.rows, beside.rows)
    assert not mx.array_equal(alone.rows, other.rows)
