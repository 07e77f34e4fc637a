"""Paths that say how a server stands."""

import asyncio
import json
import re

from served import Served, serving

from helium_mlx.engine.engine import HeliumEngine
from helium_mlx.server.access import Access
from helium_mlx.server.http import EventStream, Request

VALUE = re.compile(r"^(\w+(?:\{[^}]*\})?) (\S+)$", re.MULTILINE)


def counters(server: Served) -> dict[str, float]:
    status, headers, text = server.ask("GET", "/metrics")
    assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    return {name: float(value) for name, value in VALUE.findall(text)}


def test_counters_say_what_was_asked_and_nothing_of_texts(engine: HeliumEngine) -> None:
    with serving(engine) as server:
        usage = server.completion(prompt="a secret text", max_tokens=3, n=2)["usage"]
        server.error({"max_tokens": -1})
        server.ask("GET", "/a-secret-path")
        found = counters(server)
        assert found["helium_mlx_prompt_tokens_total"] == usage["prompt_tokens"]
        assert found["helium_mlx_completion_tokens_total"] == usage["completion_tokens"]
        assert found['helium_mlx_requests_total{path="/v1/completions",status="200"}'] == 1
        assert found['helium_mlx_requests_total{path="/v1/completions",status="400"}'] == 1
        assert found['helium_mlx_requests_total{path="other",status="404"}'] == 1
        assert found["helium_mlx_time_to_first_token_seconds_count"] == 2
        assert found["helium_mlx_open_requests"] == 0
        assert "secret" not in server.ask("GET", "/metrics")[2]


def test_health_ends_with_the_engine() -> None:
    with HeliumEngine("demo") as engine, serving(engine) as server:
        assert server.ask("GET", "/health")[::2] == (200, '{"status": "ok"}\n')
        engine.close()
        status, _, text = server.ask("GET", "/health")
        assert (status, json.loads(text)["error"]["type"]) == (503, "server_error")
        assert server.error({"prompt": "Once"}, status=503)["type"] == "server_error"


def test_tokens_are_the_tokenizers(server: Served, engine: HeliumEngine) -> None:
    text = "Il était une fois — 日本 🪡."
    answer = json.loads(server.ask("POST", "/tokenize", {"prompt": text})[2])
    ids = engine.tokenizer.encode(text)
    assert (answer["tokens"], answer["count"], answer["max_model_len"]) == (ids, len(ids), 4096)
    assert "".join(answer["texts"]).lstrip() == text
    bare = json.loads(server.ask("POST", "/tokenize", {"prompt": text, "add_special_tokens": False})[2])
    assert bare["tokens"] == ids[1:]
    assert json.loads(server.ask("POST", "/detokenize", {"tokens": ids})[2]) == {"prompt": engine.tokenizer.decode(ids)}
    assert json.loads(server.ask("POST", "/detokenize", {"tokens": []})[2]) == {"prompt": ""}
    assert "999999" in server.error({"tokens": [999_999]}, path="/detokenize")["message"]
    information = json.loads(server.ask("GET", "/tokenizer_info")[2])
    assert (information["bos_token"], information["chat_template"]) == (engine.tokenizer.bos_token, None)


def test_the_one_model_is_listed(server: Served) -> None:
    (model,) = json.loads(server.ask("GET", "/v1/models")[2])["data"]
    assert (model["id"], model["object"], model["max_model_len"]) == ("demo", "model", 4096)


def test_the_document_names_every_path(server: Served) -> None:
    document = json.loads(server.ask("GET", "/openapi.json")[2])
    assert document["openapi"].startswith("3.1")
    # What is refused whatever it holds is no part of the API.
    assert {*document["paths"]} == {*server.app._routes} - {"/v1/chat/completions"}
    schema = document["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"prompt", "logit_bias", "best_of", "heal"} <= {*schema["properties"]}


def test_a_request_that_is_turned_away_is_counted_once(engine: HeliumEngine) -> None:
    with serving(engine, access=Access("a-key-of-enough-characters")) as server:
        assert server.ask("GET", "/v1/models")[0] == 401
        assert server.ask("POST", "/v1/completions", {"prompt": "a"})[0] == 401
        server.headers["Authorization"] = "Bearer a-key-of-enough-characters"
        found = counters(server)
        assert found['helium_mlx_requests_total{path="/v1/models",status="401"}'] == 1
        assert found['helium_mlx_requests_total{path="/v1/completions",status="401"}'] == 1


def test_a_stream_that_nobody_reads_gives_its_place_back(engine: HeliumEngine) -> None:
    with serving(engine) as server:
        body = json.dumps({"prompt": "Once", "max_tokens": 2000, "ignore_eos": True, "stream": True}).encode()

        async def hang_up_before_the_answer() -> None:
            answer = await server.app(Request("POST", "/v1/completions", {"host": "localhost"}, body))
            assert isinstance(answer, EventStream)
            await answer.events.aclose()

        asyncio.run_coroutine_threadsafe(hang_up_before_the_answer(), server.loop).result()
        assert (server.app.metrics.open_requests, server.app.metrics.hung_up) == (0, 1)
