"""`/v1/completions` against what the package computes without a server."""

import json
import math
import threading
from http.client import HTTPConnection
from typing import Any

import pytest
from served import PROMPT, Demo, Served, expected, serving
from waiting import LONGEST_WAIT, wait_for

from helium_mlx.engine.engine import HeliumEngine
from helium_mlx.generation.scoring import Score, score
from helium_mlx.server.app import Service
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

GREEDY: dict[str, object] = {"prompt": PROMPT, "temperature": 0, "max_tokens": 12}


def test_the_text_is_what_the_package_generates(server: Served, demo: Demo) -> None:
    answer = server.completion(**GREEDY)
    assert answer["object"] == "text_completion"
    assert answer["model"] == "demo"
    (choice,) = answer["choices"]
    assert choice == {
        "text": expected(demo, max_tokens=12),
        "index": 0,
        "logprobs": None,
        "finish_reason": "length",
    }
    prompt = len(demo[1].encode(PROMPT))
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (prompt, 12, prompt + 12)


def test_what_is_computed_already_is_said(server: Served) -> None:
    first = {**GREEDY, "prompt": "In einem Land vor unserer Zeit lebte ein kleiner Drache"}
    server.completion(**first)
    usage = server.completion(**first)["usage"]
    assert 0 < usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.9, "seed": 7},
        {"temperature": 1.3, "seed": 7, "top_p": 0.8, "top_k": 20, "min_p": 0.02},
        {"temperature": 0, "repetition_penalty": 1.5},
        {"temperature": 0, "kv_bits": 8},
        {"temperature": 0, "presence_penalty": 1.2, "frequency_penalty": 0.5},
        {"temperature": 0, "prompt_lookup": 4},
        {"temperature": 0.8, "seed": 3, "logit_bias": {"372": -50.0, "370": 5}},
    ],
    ids=str,
)
def test_options_are_the_packages(server: Served, demo: Demo, options: dict[str, Any]) -> None:
    bias = options.get("logit_bias") or {}
    own = {**options, "logit_bias": {int(token): value for token, value in bias.items()}}
    text = server.completion(**{**GREEDY, **options})["choices"][0]["text"]
    assert text == expected(demo, PROMPT, max_tokens=12, **own)


def test_a_healed_prompt_goes_on_inside_its_word(server: Served, demo: Demo) -> None:
    healed = {**GREEDY, "prompt": "Once upon a ti", "heal": True}
    text = server.completion(**healed)["choices"][0]["text"]
    assert text == expected(demo, "Once upon a ti", max_tokens=12, heal=True)
    assert text.startswith("me")


def test_several_prompts_come_back_in_order(server: Served, demo: Demo) -> None:
    prompts = [PROMPT, "Il était une fois", "Es war einmal"]
    answer = server.completion(**{**GREEDY, "prompt": prompts})
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert [choice["text"] for choice in answer["choices"]] == [expected(demo, p, max_tokens=12) for p in prompts]
    ids = [demo[1].encode(prompt) for prompt in prompts]
    assert [choice["text"] for choice in server.completion(**{**GREEDY, "prompt": ids})["choices"]] == [
        choice["text"] for choice in answer["choices"]
    ]
    assert server.completion(**{**GREEDY, "prompt": ids[1]})["choices"][0]["text"] == answer["choices"][1]["text"]


def test_a_missing_prompt_is_an_empty_one(server: Served, demo: Demo) -> None:
    assert server.completion(temperature=0, max_tokens=5)["choices"][0]["text"] == expected(demo, "", max_tokens=5)


def test_n_completions_differ_and_repeat_with_their_seed(server: Served) -> None:
    asked = {"prompt": PROMPT, "n": 4, "seed": 11, "max_tokens": 8, "temperature": 1.5}
    first, second = server.completion(**asked), server.completion(**asked)
    texts = [choice["text"] for choice in first["choices"]]
    assert texts == [choice["text"] for choice in second["choices"]]
    assert len(set(texts)) > 1
    assert first["usage"]["completion_tokens"] >= sum(map(bool, texts))


def test_the_best_of_several_is_the_likeliest_a_token(server: Served) -> None:
    asked = {"prompt": PROMPT, "seed": 5, "max_tokens": 6, "temperature": 1.6, "logprobs": 0}
    drawn = server.completion(**asked, n=6)["choices"]
    means = [sum(c["logprobs"]["token_logprobs"]) / len(c["logprobs"]["token_logprobs"]) for c in drawn]
    best = server.completion(**asked, n=2, best_of=6)["choices"]
    order = sorted(range(6), key=lambda place: -means[place])
    assert [choice["text"] for choice in best] == [drawn[place]["text"] for place in order[:2]]


def test_stop_strings_end_the_text_and_are_not_in_it(server: Served, demo: Demo) -> None:
    whole = expected(demo, max_tokens=12)
    stop = whole[7:10]
    choice = server.completion(**GREEDY, stop=[stop, "never there"])["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (whole[: whole.index(stop)], "stop")


def test_logprobs_are_those_of_score(server: Served, demo: Demo) -> None:
    answer = server.completion(**GREEDY, logprobs=3, echo=True)
    (choice,) = answer["choices"]
    listed = choice["logprobs"]
    scored = score(*demo, demo[1].encode(PROMPT) + listed["token_ids"][-12:], top_logprobs=3)
    assert listed["token_ids"] == scored.tokens[1:]
    assert listed["token_logprobs"] == pytest.approx(scored.logprobs[1:], abs=2e-4)
    assert "".join(listed["tokens"]) == choice["text"]
    offsets = listed["text_offset"]
    assert [choice["text"][a:b] for a, b in zip(offsets, [*offsets[1:], None], strict=True)] == listed["tokens"]
    for top, of_score, chosen in zip(
        listed["top_token_ids"], scored.top_logprobs[1:], listed["token_ids"], strict=True
    ):
        assert set(top) == {*map(str, of_score), str(chosen)}
        assert max(top.values()) == pytest.approx(max(of_score.values()), abs=2e-4)


def test_a_prompt_is_scored_without_a_completion(server: Served, demo: Demo) -> None:
    text = "Il était une fois une petite fille — 日本."
    (choice,) = server.completion(prompt=text, max_tokens=0, echo=True, logprobs=1)["choices"]
    listed = choice["logprobs"]
    assert choice["text"] == text
    assert listed["token_logprobs"] == pytest.approx(score(*demo, text).logprobs[1:], abs=2e-4)
    assert len(listed["tokens"]) == len(listed["top_logprobs"]) == len(listed["text_offset"])
    # Ids are listed as they came, BOS too.
    (choice,) = server.completion(prompt=demo[1].encode(text), max_tokens=0, echo=True, logprobs=1)["choices"]
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert choice["logprobs"]["token_logprobs"][1:] == listed["token_logprobs"]
    assert choice["logprobs"]["top_logprobs"][0] is None


def test_a_prompt_of_bos_alone_has_no_logprobs(server: Served, demo: Demo) -> None:
    bos = demo[1].encode("")
    (choice,) = server.completion(prompt=bos, max_tokens=0, echo=True, logprobs=1)["choices"]
    assert choice["logprobs"]["token_logprobs"] == [None]
    (choice,) = server.completion(prompt="", max_tokens=0, echo=True, logprobs=1)["choices"]
    assert choice["logprobs"]["tokens"] == []


def test_without_echo_offsets_count_from_the_prompts_beginning(server: Served) -> None:
    (choice,) = server.completion(**GREEDY, logprobs=0)["choices"]
    listed = choice["logprobs"]
    assert listed["text_offset"][0] == len(PROMPT)
    assert listed["top_logprobs"] is None
    assert all(math.isfinite(value) for value in listed["token_logprobs"])


def test_a_stream_has_the_same_text(server: Served, demo: Demo) -> None:
    events = server.events(**GREEDY, logprobs=1, stream_options={"include_usage": True})
    assert "".join(event["choices"][0]["text"] for event in events[:-1]) == expected(demo, max_tokens=12)
    assert [event["choices"][0]["finish_reason"] for event in events[:-1]] == [None] * (len(events) - 2) + ["length"]
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == 12
    assert {event["usage"] is None for event in events[:-1]} == {True}
    assert len({event["id"] for event in events}) == 1
    whole = server.completion(**GREEDY, logprobs=1)["choices"][0]["logprobs"]
    for name in ("tokens", "token_ids", "text_offset"):
        assert [item for event in events[:-1] for item in event["choices"][0]["logprobs"][name]] == whole[name]


def test_a_stream_of_several_choices_keeps_them_apart(server: Served, demo: Demo) -> None:
    prompts = [PROMPT, "Es war einmal"]
    texts = ["", ""]
    for event in server.events(**{**GREEDY, "prompt": prompts, "echo": True}):
        for choice in event["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == [prompt + expected(demo, prompt, max_tokens=12) for prompt in prompts]


def test_characters_of_several_tokens_come_whole(server: Served, demo: Demo) -> None:
    asked = {"prompt": "日本語", "temperature": 1.8, "seed": 2, "max_tokens": 40}
    text = "".join(event["choices"][0]["text"] for event in server.events(**asked))
    assert (
        text
        == server.completion(**asked)["choices"][0]["text"]
        == expected(demo, "日本語", temperature=1.8, seed=2, max_tokens=40)
    )


def test_time_may_be_limited(engine: HeliumEngine) -> None:
    with serving(engine) as server:
        # Far more than can be had in a millisecond; the end is not the last token.
        choice = server.completion(**{**GREEDY, "max_tokens": 4000, "ignore_eos": True, "time_budget_ms": 1})
        assert choice["choices"][0]["finish_reason"] == "length"
        assert choice["usage"]["completion_tokens"] < 4000


def test_a_request_that_takes_too_long_ends_with_an_error(engine: HeliumEngine) -> None:
    asked = {**GREEDY, "max_tokens": 4000, "ignore_eos": True}
    with serving(engine, service=Service("demo", timeout=0.05)) as server:
        assert "--timeout" in server.error(asked, status=504)["message"]
        wait_for(lambda: server.app.metrics.open_requests == 0)
        server.app.completions.timeout = 600.0
        # The engine is free again.
        server.completion(**GREEDY)


@pytest.mark.parametrize("streams", [False, True])
def test_who_hangs_up_ends_the_completion(engine: HeliumEngine, streams: bool) -> None:
    with serving(engine) as server:
        connection = HTTPConnection("127.0.0.1", server.port, timeout=LONGEST_WAIT)
        asked = {**GREEDY, "max_tokens": 4000, "ignore_eos": True, "stream": streams}
        connection.request("POST", "/v1/completions", json.dumps(asked))
        wait_for(lambda: server.app.metrics.open_requests == 1)
        if streams:
            answer = connection.getresponse()
            assert answer.readline().startswith(b"data: ")
            answer.close()
        connection.close()
        wait_for(lambda: server.app.metrics.open_requests == 0)
        assert server.app.metrics.hung_up == 1
        assert server.completion(**GREEDY)["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("parameters", "param", "said"),
    [
        ({"suffix": "the end"}, "suffix", "no tokens for filling in"),
        ({"max_tokns": 3}, "max_tokns", "did you mean max_tokens?"),
        ({"temperature": 2.5}, "temperature", "a number from 0 to 2"),
        ({"temperature": "hot"}, "temperature", "'hot'"),
        ({"top_p": 0}, "top_p", "above 0"),
        ({"n": 0}, "n", "a whole number from 1"),
        ({"n": 3, "best_of": 2}, "best_of", "at least n"),
        ({"n": 1, "best_of": 2, "stream": True}, "best_of", "cannot choose"),
        ({"n": 100, "prompt": ["a", "b"]}, "n", "128 are the most"),
        ({"logprobs": 21}, "logprobs", "from 0 to 20"),
        ({"max_tokens": 0}, "max_tokens", "echo"),
        ({"max_tokens": 5000}, "max_tokens", "at most 4096"),
        ({"max_tokens": True}, "max_tokens", "a whole number"),
        ({"prompt": []}, "prompt", "text or a list"),
        ({"prompt": [[]]}, "prompt", "text or a list"),
        ({"prompt": [1, "a"]}, "prompt", "text or a list"),
        ({"prompt": [10**9]}, None, "1000000000"),
        ({"prompt": [-1]}, "prompt", "0 or more"),
        ({"prompt": "x \ud800"}, None, "lone surrogate"),
        ({"logit_bias": {"the": 1}}, "logit_bias", "token ids"),
        ({"logit_bias": {"5": 101}}, "logit_bias", "from -100 to 100"),
        ({"stop": [""]}, "stop", "at least one character"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "without stream"),
        ({"seed": -1}, "seed", "whole number"),
        ({"kv_bits": 7}, "kv_bits", "7"),
        ({"prompt": "word " * 5000}, "prompt", "context"),
        ({"prompt": "word " * 5000, "stream": True}, "prompt", "context"),
        ({"prompt": "word " * 5000, "max_tokens": 0, "echo": True, "logprobs": 1}, "prompt", "context"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named_in_a_line(server: Served, parameters: dict, param: str | None, said: str) -> None:
    error = server.error({"max_tokens": 4, **parameters})
    assert said in error["message"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not JSON"),
        (b"[1]", "holds a list"),
        (b"{", "not JSON"),
        (b'{"prompt": "\xff"}', "not UTF-8"),
        (b'{"n": 1, "n": 2}', "twice"),
        (b'{"temperature": NaN}', "NaN"),
        (b'{"prompt": ' + b"[" * 100 + b"]" * 100 + b"}", "nested"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "digits"),
    ],
)
def test_a_body_that_is_no_object_is_named(server: Served, body: bytes, said: str) -> None:
    status, _, text = server.ask("POST", "/v1/completions", body)
    assert status == 400
    assert said in json.loads(text)["error"]["message"]


def test_values_of_null_and_names_without_effect_are_taken(server: Served, demo: Demo) -> None:
    nulls = dict.fromkeys(("n", "stop", "logprobs", "seed", "suffix", "best_of", "user", "stream_options"))
    text = server.completion(**GREEDY, **nulls, model="anything/../etc", metadata={"a": "b"}, store=False)
    assert text["choices"][0]["text"] == expected(demo, max_tokens=12)
    assert text["model"] == "demo"


def test_whole_numbers_may_have_a_point(server: Served) -> None:
    ids = server.app.engine.tokenizer.encode(PROMPT)
    asked = {"prompt": ids, "max_tokens": 6, "seed": 7, "top_k": 9, "n": 2, "logprobs": 1}
    pointed = {name: float(value) for name, value in asked.items() if isinstance(value, int)}
    texts = [
        [choice["text"] for choice in server.completion(**each)["choices"]]
        for each in (asked, {**pointed, "prompt": [[float(token) for token in ids]]})
    ]
    assert texts[0] == texts[1]


def test_chat_is_answered_with_a_sentence(server: Served) -> None:
    error = server.error({"messages": []}, path="/v1/chat/completions")
    assert "base model" in error["message"]


def test_more_than_may_wait_are_sent_away(engine: HeliumEngine) -> None:
    with serving(engine, service=Service("demo", max_concurrent=1)) as server:
        connections = []
        for _ in range(5):
            connection = HTTPConnection("127.0.0.1", server.port, timeout=LONGEST_WAIT)
            asked = {**GREEDY, "max_tokens": 3000, "ignore_eos": True}
            connection.request("POST", "/v1/completions", json.dumps(asked))
            connections.append(connection)
        wait_for(lambda: server.app.metrics.open_requests == 5)
        status, headers, text = server.ask("POST", "/v1/completions", GREEDY)
        assert (status, headers["retry-after"]) == (503, "1")
        assert "5 requests run or wait already" in text
        for connection in connections:
            connection.close()
        wait_for(lambda: server.app.metrics.open_requests == 0)
        server.completion(**GREEDY)


def test_a_prompt_is_read_and_scored_once_and_not_in_the_thread_of_connections(
    engine: HeliumEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, score_async = HeliumTokenizer.encode, HeliumEngine.score_async
    threads, scored = [], []

    def noted_encode(self: HeliumTokenizer, text: str, **options: object) -> list[int]:
        threads.append(threading.current_thread())
        return encode(self, text, **options)  # pyright: ignore[reportArgumentType]

    async def noted_score(self: HeliumEngine, text: list[int], *, top_logprobs: int = 0) -> Score:
        scored.append(text)
        return await score_async(self, text, top_logprobs=top_logprobs)

    monkeypatch.setattr(HeliumTokenizer, "encode", noted_encode)
    monkeypatch.setattr(HeliumEngine, "score_async", noted_score)
    with serving(engine) as server:
        asked = {**GREEDY, "n": 3, "echo": True, "logprobs": 2}
        server.completion(**asked)
        server.events(**asked, stream_options={"include_usage": True})
        assert len(scored) == len(threads) == 2
        assert server.thread not in threads
