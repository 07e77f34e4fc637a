"""Vectors are the model's own figures, and a host that gives others is found out."""

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest
from bundle_samples import write_text_checkpoint

from helium_mlx import export, generate
from helium_mlx.bundle.bundle import open_bundle
from helium_mlx.bundle.runner import BundleRunner
from helium_mlx.bundle.vectors import GREEDY_TOKENS, LONG_PROMPTS, SHORT_PROMPTS, Vectors, check_vectors, make_vectors
from helium_mlx.errors import BundleError
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.model.loading import load
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("source")
    return write_text_checkpoint(directory, max_position_embeddings=640, num_hidden_layers=2)


@pytest.fixture(scope="module")
def loaded(source: Path) -> tuple[HeliumForCausalLM, HeliumTokenizer]:
    return load(source)


@pytest.fixture(scope="module")
def known(loaded: tuple[HeliumForCausalLM, HeliumTokenizer]) -> Vectors:
    return make_vectors(*loaded, context=640)


@pytest.fixture(scope="module")
def runner(source: Path, tmp_path_factory: pytest.TempPathFactory) -> BundleRunner:
    directory = tmp_path_factory.mktemp("bundle") / "bundle"
    export(source, directory, verify=False)
    return BundleRunner(open_bundle(directory))


def test_prompts_are_in_six_languages_and_go_over_a_prefill_length_and_a_capacity(known: Vectors) -> None:
    assert [vector.prompt for vector in known.vectors[: len(SHORT_PROMPTS)]] == list(SHORT_PROMPTS)
    long = [len(vector.ids) for vector in known.vectors[len(SHORT_PROMPTS) :]]
    assert all(least <= count < least + 12 for least, count in zip(LONG_PROMPTS, long, strict=True))
    assert long[-1] < 512 < long[-1] + GREEDY_TOKENS


def test_prompts_that_leave_no_room_are_left_out(loaded: tuple[HeliumForCausalLM, HeliumTokenizer]) -> None:
    vectors = make_vectors(*loaded, context=60).vectors
    assert vectors
    assert all(len(vector.ids) + GREEDY_TOKENS <= 60 for vector in vectors)


@pytest.mark.parametrize("context", [2, 3, 24])
def test_a_context_without_room_for_any_has_one_vector_that_fills_it(
    source: Path, tmp_path: Path, context: int
) -> None:
    report = export(source, tmp_path / "bundle", context=context)
    assert report.vectors == 1
    (vector,) = make_vectors(*load(source), context=context).vectors
    assert len(vector.ids) == 1
    assert len(vector.greedy_ids) == context


def test_ids_and_text_are_what_generate_gives(
    loaded: tuple[HeliumForCausalLM, HeliumTokenizer], known: Vectors
) -> None:
    model, tokenizer = loaded
    for vector in known.vectors:
        assert vector.ids == tokenizer.encode(vector.prompt)
        assert vector.text == generate(model, tokenizer, vector.prompt, max_tokens=GREEDY_TOKENS)
        assert len(vector.pieces) == len(vector.greedy_ids) + 1


def test_logits_are_those_of_one_forward_pass(
    loaded: tuple[HeliumForCausalLM, HeliumTokenizer], known: Vectors
) -> None:
    for vector in known.vectors[:3]:
        whole = loaded[0](mx.array([vector.ids + vector.greedy_ids])).logits[0]
        for logits in vector.logits:
            row = whole[logits.position]
            assert row[mx.array(logits.ids)].tolist() == pytest.approx(logits.values, abs=1e-5 * logits.largest)
            assert logits.values == sorted(logits.values, reverse=True)
            assert row.max().item() == pytest.approx(logits.values[0], abs=1e-5 * logits.largest)
            assert mx.abs(row).max().item() == pytest.approx(logits.largest, rel=1e-5)


def test_a_bundle_passes_its_vectors(runner: BundleRunner, known: Vectors) -> None:
    assert check_vectors(runner, known) < 1e-5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ids": [1, 2]}, "other ids"),
        ({"greedy_ids": [7] * GREEDY_TOKENS, "margin": 1.0}, "otherwise than the model"),
        ({"pieces": []}, "in other pieces"),
    ],
)
def test_what_differs_is_named(runner: BundleRunner, known: Vectors, change: dict, said: str) -> None:
    wrong = replace(known, vectors=[known.vectors[0], replace(known.vectors[1], **change)])
    with pytest.raises(BundleError, match=said):
        check_vectors(runner, wrong)


def test_a_wrong_logit_is_named(runner: BundleRunner, known: Vectors) -> None:
    first = known.vectors[0]
    logits = replace(
        first.logits[0], values=[value + first.logits[0].largest / 1000 for value in first.logits[0].values]
    )
    with pytest.raises(BundleError, match=r"logits .* differ from the model's by 1\.0e-03"):
        check_vectors(runner, replace(known, vectors=[replace(first, logits=[logits])]))


def test_wrong_pieces_of_a_stream_are_named(runner: BundleRunner, known: Vectors) -> None:
    wrong = replace(known, streams=[replace(known.streams[0], pieces=["x"])])
    with pytest.raises(BundleError, match="streams the ids"):
        check_vectors(runner, wrong)


def test_streams_hold_bytes_that_are_no_text(known: Vectors) -> None:
    assert any("\ufffd" in "".join(stream.pieces) for stream in known.streams)
    assert any("👩" in "".join(stream.pieces) for stream in known.streams)
