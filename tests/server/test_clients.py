"""Clients of OpenAI's API, unchanged, against a running server, as docs/serve.md says to use them."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from served import PROMPT, Demo, Served, expected
from waiting import LONGEST_WAIT

from helium_mlx.files.hub import DEMO_DIRECTORY

PAGE = (Path(__file__).parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")


def blocks(language: str, server: Served) -> list[str]:
    """The page's code in a language, as it is for this server."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return [block.replace("127.0.0.1:8080", f"127.0.0.1:{server.port}") for block in found]


@pytest.mark.parametrize("package", ["openai", "langchain_openai", "httpx"])
def test_the_pages_python_runs(package: str, server: Served, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip(package)
    (code,) = [
        block for block in blocks("py", server) if re.search(rf"^(from|import) {package}\b", block, re.MULTILINE)
    ]
    exec(code, {})
    assert len(capsys.readouterr().out.split()) > 3


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/suggestions"])
def test_the_pages_curl_runs(path: str, server: Served) -> None:
    commands = [line for line in "".join(blocks("sh", server)).splitlines() if line.startswith("curl") and path in line]
    assert commands
    for command in commands:
        done = subprocess.run(shlex.split(command), capture_output=True, text=True, timeout=LONGEST_WAIT)
        assert json.loads(done.stdout)["object"] in ("text_completion", "suggestions"), done


def test_openai_reads_every_field(server: Served, demo: Demo) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="-", max_retries=0)
    text = expected(demo, max_tokens=6)
    asked = {"model": "demo", "prompt": "Once upon a time", "max_tokens": 6, "temperature": 0}
    answer = client.completions.create(**asked, logprobs=2, echo=True, n=2, best_of=2, user="me", seed=1)
    assert [choice.text for choice in answer.choices] == [f"Once upon a time{text}"] * 2
    assert "".join(answer.choices[0].logprobs.tokens) == answer.choices[0].text
    assert answer.usage.completion_tokens == 12
    events = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(choice.text for event in events for choice in event.choices) == text
    assert events[-1].usage.completion_tokens == 6
    assert [model.id for model in client.models.list()] == ["demo"]
    with pytest.raises(openai.BadRequestError, match="suffix"):
        client.completions.create(**asked, suffix="x")
    with pytest.raises(openai.BadRequestError, match="base model"):
        client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "Hi"}])


@pytest.mark.parametrize(
    "parameters",
    [
        # Cotabby's OpenAICompatibleAPIClient.swift, mikupad's openaiCompletion with "Strict API", loomsidian's
        # completeOpenAICompat.
        {"model": "demo", "prompt": PROMPT, "stream": True, "max_tokens": 4, "temperature": 0.2, "top_p": 0.9},
        {"model": "", "prompt": PROMPT, "seed": 3, "temperature": 0.7, "logit_bias": {"500": -100.0}, "stop": ["\n"],
         "presence_penalty": 0, "frequency_penalty": 0, "top_p": 0.95, "max_tokens": 4, "logprobs": 10, "stream": True},
        {"prompt": PROMPT, "model": "demo", "max_tokens": 4, "n": 5, "temperature": 1, "top_p": 1, "best_of": 6,
         "frequency_penalty": 0.5, "presence_penalty": 0.5},
    ],
    ids=["Cotabby", "mikupad", "loomsidian"],
)  # fmt: skip
def test_what_apps_send_is_answered(server: Served, parameters: dict[str, object]) -> None:
    status, _, text = server.ask("POST", "/v1/completions", parameters, {"Authorization": "Bearer "})
    assert status == 200, text


def test_llm_completes(server: Served, demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llm")
    (models,) = blocks("yaml", server)
    (tmp_path / "extra-openai-models.yaml").write_text(models)
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    monkeypatch.setenv("OPENAI_API_KEY", "-")
    command = [sys.executable, "-m", "llm", "-m", "helium", "Once upon a time", "-o", "temperature", "0"]
    done = subprocess.run(
        [*command, "-o", "max_tokens", "6"], capture_output=True, text=True, timeout=LONGEST_WAIT, check=False
    )
    assert done.stdout.strip() == expected(demo, max_tokens=6).strip(), done.stderr


def test_lm_evals_completions_have_the_figures_of_evaluate(server: Served) -> None:
    pytest.importorskip("aiohttp")
    pytest.importorskip("tenacity")
    from evaluated_checkpoints import requests
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    from helium_mlx.evaluation.language_model import HeliumLM

    theirs = cast(Any, LocalCompletionsAPI)(
        model="demo",
        base_url=f"http://127.0.0.1:{server.port}/v1/completions",
        tokenizer=str(DEMO_DIRECTORY),
        tokenizer_backend="huggingface",
        add_bos_token=True,
        max_length=4096,
        num_concurrent=4,
    )
    ours = HeliumLM(str(DEMO_DIRECTORY), dtype="float32")
    scored = requests()["loglikelihood"][:10]
    for request, found, wanted in zip(scored, theirs.loglikelihood(scored), ours.loglikelihood(scored), strict=True):
        assert found[1] == wanted[1], request.args
        assert found[0] == pytest.approx(wanted[0], abs=1e-3), request.args
    completed = requests()["generate_until"][:8]
    # A text of ours begins without the space that parts it from the prompt, as `hf` has it.
    assert [text.lstrip(" ") for text in theirs.generate_until(completed)] == ours.generate_until(completed)
