"""`/v1/suggestions` against `HeliumEngine.suggest`."""

import json
from http.client import HTTPConnection

import pytest
from served import Served, serving
from waiting import LONGEST_WAIT, wait_for

from helium_mlx.engine.engine import HeliumEngine
from helium_mlx.server.app import Service

# No clock ends it.
ASKED: dict[str, object] = {"prompt": "Once upon a ti", "max_words": 3, "threshold": 0.0, "time_budget_ms": 60_000}


def test_suggestions_are_the_engines(server: Served, engine: HeliumEngine) -> None:
    status, _, text = server.ask("POST", "/v1/suggestions", {**ASKED, "n": 3})
    assert status == 200, text
    answer = json.loads(text)
    found = engine.suggest("Once upon a ti", max_words=3, threshold=0.0, time_budget_ms=60_000, n=3).result()
    assert [one["text"] for one in answer["suggestions"]] == [one.text for one in found.suggestions]
    assert [one["probability"] for one in answer["suggestions"]] == pytest.approx(
        [one.probability for one in found.suggestions], abs=1e-4
    )
    assert answer["suggestions"][0]["text"].startswith("me")
    assert (answer["object"], answer["ended"]) == ("suggestions", "words")
    assert answer["usage"]["prompt_tokens"] == found.prompt_tokens


def test_a_stream_has_a_word_an_event_and_then_the_whole(server: Served) -> None:
    whole = json.loads(server.ask("POST", "/v1/suggestions", ASKED)[2])
    status, headers, text = server.ask("POST", "/v1/suggestions", {**ASKED, "stream": True})
    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    *words, last, done = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert done == "[DONE]"
    assert json.loads(last)["suggestions"] == whole["suggestions"]
    assert "".join(json.loads(word)["text"] for word in words) == whole["suggestions"][0]["text"]


def test_nothing_is_suggested_below_the_threshold(server: Served) -> None:
    answer = json.loads(server.ask("POST", "/v1/suggestions", {**ASKED, "prompt": "Xq zzt", "threshold": 1.0})[2])
    assert (answer["suggestions"], answer["ended"]) == ([], "threshold")


@pytest.mark.parametrize(
    ("parameters", "param"),
    [({"max_words": 0}, "max_words"), ({"n": 9}, "n"), ({"threshold": 2}, "threshold"), ({"handle": 3}, "handle"),
     ({"time_budget_ms": 0}, "time_budget_ms"), ({"prompt": ["a"]}, "prompt"), ({"max_tokens": 3}, "max_tokens"),
     ({"prompt": "word " * 5000}, "prompt")],
    ids=str,
)  # fmt: skip
def test_what_is_wrong_is_named(server: Served, parameters: dict, param: str) -> None:
    assert server.error({**ASKED, **parameters}, path="/v1/suggestions")["param"] == param


@pytest.mark.parametrize("streams", [False, True])
def test_suggestions_take_a_place_until_they_end(engine: HeliumEngine, streams: bool) -> None:
    # What is asked now waits.
    engine.pause()
    try:
        with serving(engine, service=Service("demo", max_concurrent=1)) as server:
            connections = [HTTPConnection("127.0.0.1", server.port, timeout=LONGEST_WAIT) for _ in range(5)]
            for connection in connections:
                connection.request("POST", "/v1/suggestions", json.dumps({**ASKED, "stream": streams}))
            wait_for(lambda: server.app.metrics.open_requests == 5)
            assert server.ask("POST", "/v1/suggestions", ASKED)[0] == 503
            for connection in connections:
                connection.close()
            wait_for(lambda: server.app.metrics.open_requests == 0)
            assert server.app.metrics.hung_up == 5
    finally:
        engine.resume()
