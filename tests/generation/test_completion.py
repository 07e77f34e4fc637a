"""Texts that end, stream or stop inside characters, in every path from tokens to text."""

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_checkpoints import bytes_of, write_scripted_checkpoint
from tokenizers import Tokenizer

import helium_mlx
from helium_mlx import HeliumEngine, HeliumForCausalLM, HeliumTokenizer, OptionError, TextStreamer
from helium_mlx.files.hub import DEMO_DIRECTORY
from helium_mlx.generation.batching import batch_generate
from helium_mlx.generation.completion import CompletionText, StopStrings

Loaded = tuple[HeliumForCausalLM, HeliumTokenizer]
Outcome = tuple[str, str, int]

PROMPT = "Once"
OWN_CACHE = {"kv_bits": 8}


@pytest.fixture(scope="module")
def chinese(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says 你 again and again, byte by byte."""
    start, you = HeliumTokenizer.from_pretrained("demo").encode(PROMPT)[-1], bytes_of("你")
    directory = tmp_path_factory.mktemp("chinese")
    return write_scripted_checkpoint(directory, dict(zip([start, *you], [*you, you[0]], strict=True)))


@pytest.fixture(scope="module")
def loaded(chinese: Path) -> Loaded:
    return helium_mlx.load(chinese)


def streamed(path: Path, loaded: Loaded, **options: object) -> Outcome:
    chunks = list(helium_mlx.stream_generate(*loaded, PROMPT, **options))  # pyright: ignore[reportArgumentType]
    assert chunks[-1].finish_reason is not None
    return "".join(chunk.text for chunk in chunks), chunks[-1].finish_reason, len(chunks)


def batched(path: Path, loaded: Loaded, **options: object) -> Outcome:
    first, second = batch_generate(*loaded, [PROMPT, PROMPT], **options)  # pyright: ignore[reportArgumentType]
    assert (first.text, first.finish_reason) == (second.text, second.finish_reason)
    return first.text, first.finish_reason, first.generated_tokens


def engine_with(**own: object) -> Callable[..., Outcome]:
    def run(path: Path, loaded: Loaded, **options: object) -> Outcome:
        with HeliumEngine(path) as engine:
            done = engine.stream(PROMPT, **options, **own).result()  # pyright: ignore[reportArgumentType]
        return done.text, done.finish_reason, len(done.tokens)

    return run


PATHS = {"stream": streamed, "batch": batched, "engine": engine_with(), "engine, own cache": engine_with(**OWN_CACHE)}


@pytest.mark.parametrize("name", PATHS)
def test_a_text_cut_inside_a_character_keeps_the_others(chinese: Path, loaded: Loaded, name: str) -> None:
    assert PATHS[name](chinese, loaded, max_tokens=31) == ("你" * 10 + "\ufffd", "length", 31)


@pytest.mark.parametrize("name", PATHS)
def test_a_stop_string_in_bytes_ends_the_text_with_its_last_byte(chinese: Path, loaded: Loaded, name: str) -> None:
    assert PATHS[name](chinese, loaded, max_tokens=31, stop=["国", "你你"]) == ("", "stop", 6)


def test_characters_stream_as_they_are_completed(loaded: Loaded) -> None:
    chunks = list(helium_mlx.stream_generate(*loaded, PROMPT, max_tokens=7))
    assert [chunk.text for chunk in chunks] == ["", "", "你", "", "", "你", "\ufffd"]


def test_a_text_streamer_shows_whole_characters(loaded: Loaded, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = loaded
    ids = mx.array([tokenizer.encode(PROMPT)])
    generated = model.generate(ids, max_new_tokens=31, streamer=TextStreamer(tokenizer, skip_prompt=True))
    assert capsys.readouterr().out == "你" * 10 + "\ufffd\n"
    assert tokenizer.decode(generated[0, ids.shape[1] :]) == "你" * 10 + "\ufffd"


@pytest.mark.parametrize("own", [{}, OWN_CACHE], ids=["batch", "own cache"])
def test_a_cancelled_request_has_the_text_that_was_held_back(chinese: Path, own: dict[str, object]) -> None:
    with HeliumEngine(chinese, buffer=2) as engine:
        stream = engine.stream(PROMPT, max_tokens=90, stop="你你你国", **own)  # pyright: ignore[reportArgumentType]
        for _ in range(7):
            next(stream)
        stream.cancel()
        done = stream.result()
        whole, rest = divmod(len(done.tokens), 3)
        assert done.text == "你" * whole + "\ufffd" * bool(rest)


# --- stop strings that name special tokens


def text_of(tokenizer: HeliumTokenizer, ids: list[int], stop: list[str]) -> tuple[str, str | None, str | None]:
    completion = CompletionText(tokenizer, StopStrings(stop), frozenset([tokenizer.eos_token_id]))
    text = ""
    for place, token in enumerate(ids, start=1):
        more, reason = completion.add(token, is_last=place == len(ids))
        text += more
        if reason:
            return text, reason, completion.stop_string
    raise AssertionError


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (["<|im_end|>"], ("boy", "stop", "<|im_end|>")),
        (["oy<|im_end|>"], ("b", "stop", "oy<|im_end|>")),
        (["<|im_end|> c"], ("boy", "stop", "<|im_end|> c")),
        (["cup", "<|im_"], ("boy", "stop", "<|im_")),
        (["<|im_end|>x"], ("boy cup", "length", None)),
        (["boy cup"], ("boy cup", "length", None)),
        ([], ("boy cup", "length", None)),
    ],
)
def test_a_stop_string_may_name_a_special_token(stop: list[str], expected: tuple[str, str | None, str | None]) -> None:
    tokenizer = HeliumTokenizer.from_pretrained("demo")
    boy, cup = (tokenizer.encode(word, add_special_tokens=False) for word in ("boy", "cup"))
    assert text_of(tokenizer, [*boy, tokenizer.convert_tokens_to_ids("<|im_end|>"), *cup], stop) == expected


def test_the_chunk_and_no_other_says_which_stop_string_ended_the_text(loaded: Loaded) -> None:
    chunks = list(helium_mlx.stream_generate(*loaded, PROMPT, max_tokens=31, stop=["国", "你你"]))
    assert [chunk.stop_string for chunk in chunks] == [None] * 5 + ["你你"]
    ended = list(helium_mlx.stream_generate(*loaded, PROMPT, max_tokens=6, stop="国"))
    assert ended[-1].stop_string is None


@settings(deadline=None, max_examples=200)
@given(
    data=st.lists(st.one_of(st.sampled_from(["你", "é", "ab", "😀"]).map(str.encode), st.binary(max_size=2))),
    stop=st.lists(st.text("你éab😀", min_size=1, max_size=3), max_size=3),
)
def test_a_stream_is_what_its_tokens_decode_to_before_the_first_stop_string(data: list[bytes], stop: list[str]) -> None:
    tokenizer = HeliumTokenizer.from_pretrained("demo")
    boy = tokenizer.encode("boy", add_special_tokens=False)
    ids = [*boy, *(106 + byte for byte in b"".join(data))]
    whole = tokenizer.decode(ids)
    text, reason, found = text_of(tokenizer, ids, stop)
    if reason == "length":
        assert text == whole
        assert not any(string in whole for string in stop)
    else:
        assert whole.startswith(text + str(found))
        assert found in stop


# --- tokens that end a text besides eos


@pytest.fixture(scope="module")
def story() -> Loaded:
    return helium_mlx.load("demo", dtype="float32")


def outcome(result: object) -> tuple[object, ...]:
    return tuple(getattr(result, name) for name in ("text", "finish_reason", "stop_string", "generated_tokens"))


def test_an_extra_eos_ends_every_kind_of_completion(story: Loaded) -> None:
    chunks = list(helium_mlx.stream_generate(*story, "Once upon a time", max_tokens=60))
    place = next(i for i, chunk in enumerate(chunks) if "." in chunk.text)
    before = "".join(chunk.text for chunk in chunks[:place])
    expected = (before, "eos", None, place + 1)
    for extra in (".", [chunks[place].token], [".", "</s>"]):
        options = {"max_tokens": 60, "extra_eos": extra}
        streamed = list(helium_mlx.stream_generate(*story, "Once upon a time", **options))  # pyright: ignore[reportArgumentType]
        assert "".join(chunk.text for chunk in streamed) == before
        assert (streamed[-1].finish_reason, len(streamed)) == ("eos", place + 1)
        [completion] = batch_generate(*story, ["Once upon a time"], **options)  # pyright: ignore[reportArgumentType]
        assert outcome(completion) == expected
    with HeliumEngine("demo", dtype="float32") as engine:
        found = engine.stream("Once upon a time", max_tokens=60, extra_eos=".").result()
        assert outcome(found) == expected


def test_an_extra_eos_ends_a_text_whose_eos_is_ignored(story: Loaded) -> None:
    options = {"max_tokens": 60, "ignore_eos": True}
    plain = [chunk.token for chunk in helium_mlx.stream_generate(*story, "Once", **options)]  # pyright: ignore[reportArgumentType]
    ended = [chunk.token for chunk in helium_mlx.stream_generate(*story, "Once", extra_eos=plain[9], **options)]  # pyright: ignore[reportArgumentType]
    assert ended == plain[: plain.index(plain[9]) + 1]


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("a boy", r"extra_eos: 'a boy' is \d tokens"),
        ([10**7], "extra_eos: "),
        ([-1], "extra_eos has -1; expected ids of tokens, 0 or more, or their texts"),
        ([True], "extra_eos has True; expected"),
        ([2.5], "extra_eos has 2.5; expected"),
        (None, "extra_eos has None; expected"),
        ([2] * 1001, "extra_eos has 1001 tokens; expected at most 1000"),
    ],
)
def test_what_is_no_token_is_refused_as_extra_eos(story: Loaded, extra: object, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        helium_mlx.generate(*story, "A", extra_eos=extra)  # pyright: ignore[reportArgumentType, reportCallIssue]


def test_a_completion_says_which_stop_string_ended_it(story: Loaded) -> None:
    options = {"max_tokens": 40, "stop": ["never", "boy"]}
    [completion] = batch_generate(*story, ["Once upon a time"], **options)  # pyright: ignore[reportArgumentType]
    with HeliumEngine("demo", dtype="float32") as engine:
        found = engine.stream("Once upon a time", **options).result()  # pyright: ignore[reportArgumentType]
    assert completion.stop_string == found.stop_string == "boy"
    assert completion.finish_reason == found.finish_reason == "stop"


@pytest.mark.parametrize("prompt", ["Once upon a", "Once upon a t", "Il était une f", "A\n", "Es war einmal"])
def test_the_text_with_the_space_that_it_leaves_out_is_the_whole_decoded(story: Loaded, prompt: str) -> None:
    model, tokenizer = story
    chunks = list(helium_mlx.stream_generate(model, tokenizer, prompt, max_tokens=9))
    tokens = [chunk.token for chunk in chunks]
    [completion] = batch_generate(model, tokenizer, [prompt], max_tokens=9)
    with HeliumEngine("demo", dtype="float32") as engine:
        found = engine.stream(prompt, max_tokens=9).result()
    # The tokenizers library decodes prompt and completion together.
    ids = tokenizer.encode(prompt, add_special_tokens=False)
    reference = Tokenizer.from_file(str(DEMO_DIRECTORY / "tokenizer.json"))
    before, whole = reference.decode(ids), reference.decode([*ids, *tokens])
    for text, leading_space in (
        ("".join(chunk.text for chunk in chunks), chunks[0].leading_space),
        (completion.text, completion.leading_space),
        (found.text, found.leading_space),
    ):
        assert f"{before}{' ' if leading_space else ''}{text}" == whole
    assert len({chunk.leading_space for chunk in chunks}) == 1
