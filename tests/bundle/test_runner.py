"""The round trip: a bundle's text is the model's, token for token, over every capacity and at every remainder."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path

import mlx.core as mx
import pytest
from bundle_samples import write_text_checkpoint

from helium_mlx import convert, export, stream_generate
from helium_mlx.bundle.bundle import open_bundle
from helium_mlx.bundle.functions import FunctionShape
from helium_mlx.bundle.runner import BundleRunner
from helium_mlx.errors import BundleError, ContextOverflowError, GenerationError
from helium_mlx.model.loading import load

CONTEXT = 640
CASES: dict[str, dict[str, object]] = {
    "helium": {},
    "helium-gqa-bias": {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True},
    "llama-gqa-tied": {"model_type": "llama", "num_key_value_heads": 2, "tie_word_embeddings": True},
}
Made = tuple[Path, BundleRunner]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], Made]:
    """Gives the source and the runner of a case, quantized to 4 bits or not."""
    made: dict[tuple[str, bool], Made] = {}

    def source_and_runner(name: str, quantized: bool) -> Made:
        if (name, quantized) not in made:
            root = tmp_path_factory.mktemp(name)
            values = {"max_position_embeddings": CONTEXT, "num_hidden_layers": 2} | CASES[name]
            source = write_text_checkpoint(root / "source", tokenizer="json", **values)
            if quantized:
                convert(str(source), str(root / "4bit"), quantize=True, q_group_size=32, verify=False)
                source = root / "4bit"
            export(source, root / "bundle", verify=False)
            made[name, quantized] = source, BundleRunner(open_bundle(root / "bundle"))
        return made[name, quantized]

    return source_and_runner


@pytest.fixture
def runner(make: Callable[[str, bool], Made]) -> BundleRunner:
    runner = make("helium", False)[1]
    runner.reset()
    return runner


def prompt(count: int) -> list[int]:
    return [1, *((106 + 31 * index) % 448 for index in range(count - 1))]


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_a_text_is_the_models_token_for_token_over_every_capacity(
    make: Callable[[str, bool], Made], name: str, quantized: bool
) -> None:
    source, runner = make(name, quantized)
    model, tokenizer = load(source)
    start = prompt(490)
    expected = [chunk.token for chunk in stream_generate(model, tokenizer, start, max_tokens=40)]
    assert [token for token, _ in runner.greedy(start, 40)] == expected
    # No eos came, so that the text went over from one size of cache to the next.
    assert runner.capacity == CONTEXT


@pytest.mark.parametrize("count", [*range(1, 35), 63, 64, 65, 127, 128, 129, 200, 255, 256, 511, 512, 513, 639, 640])
def test_a_prompt_of_any_length_gives_the_models_logits(make: Callable[[str, bool], Made], count: int) -> None:
    source, runner = make("helium", False)
    model = load(source)[0]
    runner.reset()
    expected = model(mx.array([prompt(count)]), logits_to_keep=1).logits[:, -1]
    assert mx.allclose(runner.feed(prompt(count)), expected, rtol=0, atol=1e-5 * float(mx.abs(expected).max().item()))  # pyright: ignore
    assert runner.offset == count


def test_what_is_fed_in_parts_is_what_is_fed_whole(runner: BundleRunner) -> None:
    whole = runner.feed(prompt(40))
    runner.reset()
    for start, end in ((0, 3), (3, 4), (4, 30), (30, 40)):
        parts = runner.feed(prompt(40)[start:end])
    assert mx.allclose(parts, whole, rtol=0, atol=1e-5 * float(mx.abs(whole).max().item()))  # pyright: ignore


def test_streamed_text_is_generate_s(make: Callable[[str, bool], Made]) -> None:
    source, runner = make("helium", False)
    model, tokenizer = load(source)
    text = "The file\nis 👩‍🚀 of"
    pieces = [chunk.text for chunk in stream_generate(model, tokenizer, text, max_tokens=60)]
    streamed = list(runner.stream(text, max_tokens=60))
    assert streamed[:-2] == pieces[:-1]
    assert "".join(streamed) == "".join(pieces)


@pytest.mark.parametrize(
    ("count", "calls"),
    [
        (1, [1]),
        (2, [16]),
        (16, [16]),
        (17, [16, 1]),
        (63, [16, 16, 16, 16]),
        (64, [128]),
        (129, [128, 1]),
        (200, [128, 128]),
        (256, [512]),
        (640, [512, 128]),
    ],
)
def test_a_prompt_is_cut_into_few_calls_with_little_padding(runner: BundleRunner, count: int, calls: list[int]) -> None:
    assert lengths_run(runner, prompt(count)) == calls


def test_where_a_padded_call_no_longer_fits_tokens_are_run_one_by_one(runner: BundleRunner) -> None:
    runner.feed(prompt(630))
    assert lengths_run(runner, prompt(5)) == [1, 1, 1, 1, 1]


def lengths_run(runner: BundleRunner, tokens: list[int]) -> list[int]:
    """Feed tokens, and return the lengths of the functions that were called."""
    made: list[int] = []
    call = runner._call

    def record(shape: FunctionShape, inputs: list[mx.array], count: int) -> object:
        made.append(shape.length)
        return call(shape, inputs, count)

    runner._call = record  # pyright: ignore[reportAttributeAccessIssue]
    runner.feed(tokens)
    del runner._call
    return made


def test_short_texts_stay_in_the_smallest_cache(runner: BundleRunner) -> None:
    runner.feed(prompt(500))
    assert runner.capacity == 512
    runner.feed(prompt(13))
    assert runner.capacity == CONTEXT
    runner.reset()
    assert runner.capacity == 512


def test_caches_are_never_copied_while_decoding(runner: BundleRunner) -> None:
    mx.eval(runner._caches)
    one_layer, before = runner._caches[0].nbytes, mx.get_active_memory()
    mx.reset_peak_memory()
    for _ in range(4):
        runner.feed([5])
    assert mx.get_peak_memory() - before < one_layer / 2


def test_after_a_text_the_cache_holds_all_but_its_last_token(make: Callable[[str, bool], Made]) -> None:
    source, runner = make("helium", False)
    model = load(source)[0]
    text = [*prompt(9), *(token for token, _ in islice(runner.greedy(prompt(9), 20), 5))]
    assert runner.offset == len(text) - 1
    expected = model(mx.array([[*text[:-1], 7]]), logits_to_keep=1).logits[:, -1]
    assert mx.allclose(runner.feed([7]), expected, rtol=0, atol=1e-5 * float(mx.abs(expected).max().item()))  # pyright: ignore


def test_while_a_token_is_read_the_next_step_is_under_way(
    runner: BundleRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = runner.greedy(prompt(9), 20)
    next(steps)
    started: list[mx.array] = []
    evaluate = mx.async_eval
    monkeypatch.setattr(mx, "async_eval", lambda *trees: (started.append(trees[0][1]), evaluate(*trees)))
    monkeypatch.setattr(runner, "_read", lambda step: pytest.fail("no step was started") if not started else 5)
    next(steps)


def test_a_text_ends_where_the_context_does(runner: BundleRunner) -> None:
    eos_free = replace(runner.bundle.manifest, eos_token_ids=())
    runner.bundle = replace(runner.bundle, manifest=eos_free)
    assert len(list(runner.greedy(prompt(636), 100))) == 5
    assert runner.offset == CONTEXT


def test_more_than_the_context_is_refused_and_changes_nothing(runner: BundleRunner) -> None:
    runner.feed(prompt(639))
    with pytest.raises(ContextOverflowError, match="2 tokens come after 639, and the bundle's context is 640"):
        runner.feed([5, 5])
    runner.feed([5])
    assert runner.offset == CONTEXT


def test_a_folder_is_opened_and_one_that_is_not_a_bundle_refused(make: Callable[[str, bool], Made]) -> None:
    source, runner = make("helium", False)
    directory = runner.bundle.directory
    assert BundleRunner(str(directory)).bundle == open_bundle(directory)
    with pytest.raises(BundleError, match=r"manifest\.json: "):
        BundleRunner(source)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_numbers_are_refused_at_any_step(runner: BundleRunner, value: float) -> None:
    sound = runner._weights
    steps = runner.greedy(prompt(20), 10)
    next(steps)
    next(steps)
    runner._weights = [mx.full(each.shape, value, each.dtype) for each in sound]
    # One step was under way.
    next(steps)
    try:
        with pytest.raises(GenerationError, match="the model's logits are NaN, infinite or all the same"):
            next(steps)
    finally:
        runner._weights = sound


def test_no_tokens_are_refused(runner: BundleRunner) -> None:
    with pytest.raises(GenerationError, match="no tokens"):
        runner.feed([])


@pytest.mark.parametrize("token", [-1, 10**6, 2**40, "5"])
def test_what_is_no_id_is_refused_before_anything_is_run(runner: BundleRunner, token: object) -> None:
    with pytest.raises(GenerationError, match="tokens token"):
        runner.feed([5, token])  # pyright: ignore[reportArgumentType]
    assert runner.offset == 0


def test_a_prompt_longer_than_the_context_and_no_tokens_are_refused_by_a_stream_too(runner: BundleRunner) -> None:
    with pytest.raises(ContextOverflowError, match="come after 0, and the bundle's context is 640"):
        list(runner.stream("word " * 700))
    with pytest.raises(GenerationError, match="max_tokens is 0"):
        list(runner.stream("word", max_tokens=0))


def test_another_thread_is_told_that_it_is_the_wrong_one(runner: BundleRunner) -> None:
    runner.feed([5])
    with ThreadPoolExecutor(1, "helper") as pool, pytest.raises(BundleError) as caught:
        pool.submit(lambda: BundleRunner(runner.bundle).feed([5])).result()
    assert "in the thread that used MLX first, and this is helper_0" in str(caught.value)
    runner.reset()
    runner.feed([5])
