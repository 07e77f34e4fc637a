"""Suggestions: whole words, ranked, none below the threshold, in time, and only for the newest text."""

import asyncio
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import cast

import pytest

import helium_mlx
from helium_mlx import EngineError, GenerationError, HeliumEngine
from helium_mlx.engine.channels import Channel
from helium_mlx.engine.stream import EngineStream
from helium_mlx.engine.suggestions import (
    SuggestedWord,
    SuggestionOptions,
    Suggestions,
    SuggestionStream,
)
from helium_mlx.generation.completion import FinishReason, GenerationChunk
from helium_mlx.generation.request import CompletionRequest, checked_request
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

Demo = tuple[HeliumForCausalLM, HeliumTokenizer]

TEXT = "Once upon a li"
# Time that never runs out.
LONG = 3_600_000


def chunk(text: str, probability: float = 1.0, *, token: int = 9, end: FinishReason | None = None) -> GenerationChunk:
    return GenerationChunk(text, token, math.log(probability), {}, False, end, 1, 1, 0.0, 0.0, 0.0)


class Scripted:
    """A stream of suggestions whose requests are answered by the test, on a clock that it sets."""

    def __init__(self, demo: Demo, **options: object) -> None:
        given = {"max_words": 8, "time_budget_ms": 1000, "n": 1, "threshold": 0.0, "handle": None, **options}
        asked = SuggestionOptions(**given)  # pyright: ignore[reportArgumentType]
        self.tokenizer = demo[1]
        self.now = 0.0
        self.requests: list[CompletionRequest] = []
        self.channels: list[Channel] = []
        self.stream = SuggestionStream(
            self._begin,
            checked_request(*demo, TEXT, asked.completion(demo[0].config.vocab_size)),
            demo[1],
            asked,
            clock=lambda: self.now,
            deadline=asked.time_budget_ms / 1000,
        )

    def _begin(self, request: CompletionRequest) -> EngineStream:
        self.requests.append(request)
        self.channels.append(Channel(64, wake=lambda: None, silence=lambda: None))
        return EngineStream(self.channels[-1], lambda *_: None, len(self.channels), request, self.tokenizer)

    def put(self, *chunks: GenerationChunk, index: int = 0) -> None:
        for each in chunks:
            self.channels[index].put(each)


def texts(words: list[SuggestedWord]) -> list[str]:
    return [word.text for word in words]


# --- words


def test_a_word_is_given_once_the_next_begins(demo: Demo) -> None:
    scripted = Scripted(demo)
    scripted.put(chunk("me"), chunk(" th"))
    assert next(scripted.stream).text == "me"
    scripted.put(chunk("ere"), chunk(", o"), chunk("ld", end="length"))
    assert texts(list(scripted.stream)) == [" there,"]
    result = scripted.stream.result()
    assert [each.text for each in result.suggestions] == ["me there,"]
    assert (result.ended, result.generated_tokens) == ("length", 5)


@pytest.mark.parametrize(("reason", "ended"), [("stop", "line"), ("eos", "eos")])
def test_the_last_word_of_a_line_or_a_text_is_whole(demo: Demo, reason: FinishReason, ended: str) -> None:
    scripted = Scripted(demo)
    scripted.put(chunk("me"), chunk(" there."), chunk("", 1e-9, end=reason))
    assert texts(list(scripted.stream)) == ["me", " there."]
    result = scripted.stream.result()
    assert (result.ended, result.suggestions[0].probability) == (ended, 1.0)


def test_after_as_many_words_as_were_asked_for_the_request_is_cancelled(demo: Demo) -> None:
    scripted = Scripted(demo, max_words=2)
    scripted.put(chunk("me there wa"), chunk("s once", end="length"))
    assert texts(list(scripted.stream)) == ["me", " there"]
    assert scripted.stream.result().ended == "words"
    assert scripted.channels[0].cancelled


def test_a_probability_is_the_geometric_mean_of_the_tokens_of_the_words(demo: Demo) -> None:
    scripted = Scripted(demo)
    # The first is held to what was typed and makes no text; the last begins a word that is not whole.
    scripted.put(
        chunk("", 0.5), chunk("me", 0.8), chunk(" th", 0.9), chunk("ere", 0.4), chunk(" o", 1e-6, end="length")
    )
    found = [word.probability for word in scripted.stream]
    assert found == pytest.approx([(0.5 * 0.8) ** (1 / 2), (0.5 * 0.8 * 0.9 * 0.4) ** (1 / 4)])
    assert scripted.stream.result().suggestions[0].probability == found[-1]


def test_a_word_below_the_threshold_is_not_given_nor_any_after_it(demo: Demo) -> None:
    scripted = Scripted(demo, threshold=0.5)
    scripted.put(chunk("me", 0.9), chunk(" there", 0.2), chunk(" was", 1.0), chunk(" a", 1.0, end="length"))
    assert texts(list(scripted.stream)) == ["me"]
    assert scripted.stream.result().ended == "threshold"
    assert scripted.channels[0].cancelled
    nothing = Scripted(demo, threshold=0.5)
    nothing.put(chunk("me", 0.4), chunk(" there"), chunk(" was", end="length"))
    assert nothing.stream.result() == Suggestions([], "threshold", len(nothing.requests[0].prompt), 2, 0)


# --- several


def alternatives(demo: Demo, *pieces: str) -> dict[int, float]:
    """The ids of pieces, each less probable than the one before it."""
    return {demo[1].one_token(piece): -1.0 - place for place, piece in enumerate(pieces)}


def test_the_others_begin_with_the_other_most_probable_tokens(demo: Demo) -> None:
    scripted = Scripted(demo, n=3)
    offered = alternatives(demo, "▁lit", "▁library", "</s>", "▁liv", "▁l")
    lit, library, eos, liv, _ = offered
    scripted.put(replace(chunk("t", 0.9, token=lit, end="eos"), top_logprobs=offered))
    next(scripted.stream)
    assert [request.generated for request in scripted.requests] == [(), (library,), (liv,)]
    assert eos in demo[1].eos_token_ids
    scripted.put(chunk(".", 0.5), chunk("", end="eos"), index=1)
    scripted.put(chunk("ed", 0.4), chunk("", end="eos"), index=2)
    result = scripted.stream.result()
    assert [(each.index, each.text) for each in result.suggestions] == [(0, "t"), (1, "brary."), (2, "ved")]
    # With the probability of the token that it begins with.
    assert result.suggestions[1].probability == pytest.approx((math.exp(-2.0) * 0.5) ** 0.5)
    assert result.generated_tokens == 1 + 3 + 3


def test_suggestions_are_ranked_and_of_two_with_one_text_the_more_probable_is_left(demo: Demo) -> None:
    scripted = Scripted(demo, n=3)
    first = alternatives(demo, "▁lit", "▁liv", "▁li")
    scripted.put(replace(chunk("t", 0.2, token=next(iter(first)), end="eos"), top_logprobs=first))
    next(scripted.stream)
    scripted.put(chunk("e", 0.1), chunk("", end="eos"), index=1)
    scripted.put(chunk("ve", 1.0), chunk("", end="eos"), index=2)
    result = scripted.stream.result()
    assert [(each.index, each.text) for each in result.suggestions] == [(2, "ve"), (0, "t")]
    assert [each.probability for each in result.suggestions] == pytest.approx([math.exp(-3 / 2), 0.2])


# --- time


def test_when_the_time_is_over_what_has_come_is_given(demo: Demo) -> None:
    scripted = Scripted(demo, n=2)
    first = alternatives(demo, "▁lit", "▁liv")
    scripted.put(replace(chunk("me", token=next(iter(first))), top_logprobs=first), chunk(" there"), chunk(" was"))
    # Nothing has come of the second.
    scripted.now = 1.0
    assert texts(list(scripted.stream)) == ["me", " there"]
    assert scripted.stream.result().ended == "time"
    assert [channel.cancelled for channel in scripted.channels] == [True, True]


def test_when_the_time_is_over_nothing_more_is_computed(demo: Demo) -> None:
    scripted = Scripted(demo)
    scripted.put(chunk("me"), chunk(" there"), chunk(" was"))
    scripted.now = 1.0
    assert next(scripted.stream).text == "me"
    assert scripted.channels[0].cancelled
    scripted.put(chunk("", token=-1, end="cancelled"))
    assert [word.text for word in scripted.stream] == [" there"]
    assert scripted.stream.result().ended == "time"


def test_in_no_time_there_is_nothing(demo: Demo) -> None:
    for read in (lambda stream: stream.result(), lambda stream: asyncio.run(whole(stream))):
        scripted = Scripted(demo)
        scripted.now = 1.0
        assert read(scripted.stream) == Suggestions([], "time", len(scripted.requests[0].prompt), 0, 0)


async def whole(stream: SuggestionStream) -> Suggestions:
    return await stream


@pytest.mark.parametrize("read", [lambda stream: stream.result(), lambda stream: asyncio.run(whole(stream))])
def test_a_wait_that_ends_before_the_time_does_goes_on(demo: Demo, read: Callable[[SuggestionStream], object]) -> None:
    scripted, looks = Scripted(demo), iter([0.999, 0.9995, 0.9999, 1.0, 1.0])
    scripted.stream._clock = lambda: next(looks)
    read(scripted.stream)
    assert list(looks) == [1.0]


# --- ends from outside


@pytest.mark.parametrize(
    ("end", "ended"), [(SuggestionStream.replace, "replaced"), (SuggestionStream.cancel, "cancelled")]
)
def test_who_was_ended_gives_no_more_words(demo: Demo, end: Callable[[SuggestionStream], None], ended: str) -> None:
    scripted = Scripted(demo)
    scripted.put(chunk("me"), chunk(" there"), chunk(" was"))
    next(scripted.stream)
    end(scripted.stream)
    assert scripted.channels[0].cancelled
    assert list(scripted.stream) == []
    result = scripted.stream.result()
    assert (result.ended, [each.text for each in result.suggestions]) == (ended, ["me"])


def test_what_begins_while_another_thread_ends_it_is_cancelled_too(demo: Demo) -> None:
    scripted = Scripted(demo, n=2)
    first = alternatives(demo, "▁lit", "▁liv")
    scripted.put(replace(chunk("me", token=next(iter(first))), top_logprobs=first), chunk(" there"))
    begin = scripted.stream._begin

    def ended_meanwhile(request: CompletionRequest) -> EngineStream:
        scripted.stream.replace()
        return begin(request)

    scripted.stream._begin = ended_meanwhile
    assert scripted.stream.result().ended == "replaced"
    assert [channel.cancelled for channel in scripted.channels] == [True, True]


def test_whoever_lets_go_cancels(demo: Demo) -> None:
    scripted = Scripted(demo)
    del scripted.stream
    assert scripted.channels[0].cancelled
    with (left := Scripted(demo)).stream:
        pass
    assert left.channels[0].cancelled


def test_an_error_of_a_request_is_raised_and_ends_the_others(demo: Demo) -> None:
    scripted = Scripted(demo, n=2)
    first = alternatives(demo, "▁lit", "▁liv")
    scripted.put(replace(chunk("me", token=next(iter(first))), top_logprobs=first), chunk(" there"))
    next(scripted.stream)
    scripted.channels[1].fail(GenerationError("broken"))
    with pytest.raises(GenerationError, match="broken"):
        scripted.stream.result()
    assert [channel.cancelled for channel in scripted.channels] == [True, True]


# --- an engine's


@pytest.fixture(scope="module")
def engine() -> Iterator[HeliumEngine]:
    with HeliumEngine("demo", dtype="float32") as engine:
        yield engine


def greedy(demo: Demo, prompt: str | list[int], **options: object) -> str:
    generate = cast(Callable[..., Iterator[GenerationChunk]], helium_mlx.stream_generate)
    return "".join(each.text for each in generate(*demo, prompt, max_tokens=60, stop=["\n"], **options))


@pytest.mark.parametrize("text", ["", "O", TEXT, "Once upon a time ", "Es war einm", "C'era una volta.", "l'été"])
def test_a_suggestion_is_the_beginning_of_the_healed_text_in_words(engine: HeliumEngine, demo: Demo, text: str) -> None:
    words = list(engine.suggest(text, threshold=0, time_budget_ms=LONG))
    assert len(words) == 8
    whole_text = greedy(demo, text, heal=True)
    found = "".join(texts(words))
    assert whole_text.startswith(found)
    assert whole_text[len(found)].isspace()
    assert all(len(word.split()) == 1 for word in texts(words))


def test_each_of_several_is_the_greedy_text_after_its_first_token(engine: HeliumEngine, demo: Demo) -> None:
    text = "Once upon a time there was a little "
    stream = engine.suggest(text, n=4, threshold=0, time_budget_ms=LONG)
    result = stream.result()
    kept = stream._request.prompt
    assert len(result.suggestions) > 2
    assert result.suggestions == sorted(result.suggestions, key=lambda each: -each.probability)
    for suggestion in result.suggestions[1:]:
        tokens = stream._candidates[suggestion.index].stream._request.generated
        if tokens:
            rest = demo[1].decode([*kept, *tokens]) + greedy(demo, [*kept, *tokens], heal=False)
            assert rest.replace(" ", "").startswith((text + suggestion.text).replace(" ", ""))


@pytest.mark.parametrize("line_end", [b"\n", b"\r"])
def test_it_ends_where_the_line_does(
    engine: HeliumEngine, demo: Demo, monkeypatch: pytest.MonkeyPatch, line_end: bytes
) -> None:
    bias = {token: 1e6 for token in range(len(demo[1])) if demo[1].token_bytes(token) == line_end}
    completion = SuggestionOptions.completion
    monkeypatch.setattr(
        SuggestionOptions, "completion", lambda options, size: replace(completion(options, size), logit_bias=bias)
    )
    result = engine.suggest("He went home.", threshold=0, time_budget_ms=LONG).result()
    assert (result.suggestions, result.ended) == ([], "line")


def test_the_next_keystroke_uses_what_the_last_has_left(engine: HeliumEngine) -> None:
    engine.suggest("The old king had three daug", time_budget_ms=LONG).result()
    result = engine.suggest("The old king had three daugh", time_budget_ms=LONG).result()
    assert result.cached_tokens == result.prompt_tokens - 1


def test_a_keystroke_runs_a_token_of_the_text_or_two(demo: Demo) -> None:
    text = "Es war einmal ein Mädchen, das hieß Frieda und wohnte am Hafen."
    with HeliumEngine("demo", dtype="float32") as engine:
        found = [
            engine.suggest(text[:end], max_words=1, time_budget_ms=LONG).result() for end in range(1, len(text) + 1)
        ]
    computed = [result.prompt_tokens - result.cached_tokens for result in found]
    assert (min(computed), statistics.median(computed)) == (1, 1)
    assert max(computed) <= 2


def test_a_newer_text_on_the_same_handle_ends_the_older(engine: HeliumEngine) -> None:
    engine.pause()
    older, other = (engine.suggest(TEXT, handle=name, time_budget_ms=LONG, threshold=0) for name in "ab")
    alone = engine.suggest(TEXT, time_budget_ms=LONG, threshold=0)
    newer = engine.suggest(TEXT + "m", handle="a", time_budget_ms=LONG, threshold=0)
    engine.resume()
    assert [stream.result().ended for stream in (older, other, alone, newer)] == ["replaced", "words", "words", "words"]


def test_threads_and_tasks_get_the_same(engine: HeliumEngine) -> None:
    async def asked() -> tuple[list[SuggestedWord], Suggestions, Suggestions]:
        words = [word async for word in engine.suggest(TEXT, n=2, threshold=0, time_budget_ms=LONG)]
        awaited = await engine.suggest(TEXT, n=2, threshold=0, time_budget_ms=LONG)
        return words, awaited, await engine.suggest_async(TEXT, n=2, threshold=0, time_budget_ms=LONG)

    words, *wholes = asyncio.run(asked())
    expected = engine.suggest(TEXT, n=2, threshold=0, time_budget_ms=LONG)
    assert texts(words) == texts(list(expected))
    result = expected.result()
    for each in wholes:
        assert [one.text for one in each.suggestions] == [one.text for one in result.suggestions]
        assert each.ended == result.ended


def test_an_engine_that_computes_nothing_does_not_hold_up_its_reader(engine: HeliumEngine) -> None:
    engine.pause()
    try:
        assert engine.suggest(TEXT, time_budget_ms=1).result().ended == "time"
    finally:
        engine.resume()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_words": 0}, "max_words is 0"),
        ({"time_budget_ms": 0}, "time_budget_ms is 0"),
        ({"time_budget_ms": math.nan}, "time_budget_ms is nan"),
        ({"n": 33}, "n is 33"),
        ({"threshold": 1.5}, "threshold is 1.5; it must be from 0 to 1"),
        ({"handle": 5}, "handle is 5; it must be text, or None"),
        ({"word": 5}, "word"),
    ],
)
def test_options_out_of_range_are_refused_by_name(
    engine: HeliumEngine, options: dict[str, object], message: str
) -> None:
    with pytest.raises(helium_mlx.HeliumError) as refused:
        cast(Callable[..., SuggestionStream], engine.suggest)(TEXT, **options)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_closed_engine_suggests_nothing() -> None:
    engine = HeliumEngine("demo", dtype="float32")
    engine.close()
    with pytest.raises(EngineError):
        engine.suggest(TEXT)
