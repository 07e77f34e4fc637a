import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import pytest
from tiny_checkpoints import CASES, write_checkpoint

from helium_mlx.diagnostics import worker as benchmark_worker
from helium_mlx.diagnostics.worker import (
    HeliumMlx,
    MlxLm,
    bandwidth,
    bytes_read_a_token,
    decode_speed,
    peak_memory,
    prefill_speed,
    random_prompt,
    serve,
)
from helium_mlx.files.hub import DEMO_DIRECTORY
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.model.loading import load_model


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


class Clockwork:
    """A program whose first token takes 2 seconds and every other a quarter, on a clock of its own."""

    vocab_size = 500

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.prompts = 100.0, []
        monkeypatch.setattr(benchmark_worker, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def generate(self, prompt: list[int], max_tokens: int, step_size: int | None = None) -> Iterator[int]:
        self.prompts.append(prompt)
        for i in range(max_tokens):
            self.now += 0.25 if i else 2.0
            yield i


def test_speeds_are_tokens_over_the_seconds_they_took(monkeypatch: pytest.MonkeyPatch) -> None:
    program = Clockwork(monkeypatch)
    assert prefill_speed(program, tokens=60) == 30  # pyright: ignore[reportArgumentType]
    assert decode_speed(program, context=7, tokens=9) == 4  # pyright: ignore[reportArgumentType]
    assert list(map(len, program.prompts)) == [60, 7]


def test_prompts_begin_with_bos_and_are_random_and_the_same_every_time() -> None:
    for length in (1, 2, 400):
        prompt = random_prompt(length, 2048)
        assert prompt == random_prompt(length, 2048)
        assert prompt[0] == 1
        assert len(prompt) == length
        assert all(106 <= token < 2048 for token in prompt[1:])
    assert len(set(prompt)) > 300
    assert max(random_prompt(400, 90)) < 90


@pytest.mark.parametrize("case", ["helium-mha", "helium-gqa-bias", "llama-mqa-tied"])
def test_bytes_of_a_step_are_those_of_the_file(
    tmp_path: Path, case: str, load_case: Callable[[str], HeliumForCausalLM]
) -> None:
    weights = mx.load(str(write_checkpoint(tmp_path, **CASES[case]) / "model.safetensors"))
    assert isinstance(weights, dict)
    embedding = weights.pop("model.embed_tokens.weight")
    tied = "lm_head.weight" not in weights
    expected = sum(weight.nbytes for weight in weights.values()) + (embedding if tied else embedding[0]).nbytes
    assert bytes_read_a_token(load_case(case)) == expected


def test_bytes_of_a_position_are_keys_and_values_of_all_layers(
    demo: tuple[HeliumForCausalLM, object],
) -> None:
    program = HeliumMlx.__new__(HeliumMlx)
    program.model = demo[0]
    config = demo[0].config
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    assert program.cache_bytes() == 4 * numbers


def test_peak_memory_holds_weights_and_cache() -> None:
    program = HeliumMlx(DEMO_DIRECTORY)
    weights = sum(array.nbytes for array in mx.load(str(DEMO_DIRECTORY / "model.safetensors")).values())  # pyright: ignore
    long, short = (peak_memory(program, tokens=tokens, step_size=64) for tokens in (640, 64))
    assert short > weights
    assert long > short + 500 * program.cache_bytes()


def test_the_step_size_reaches_the_program() -> None:
    program, sizes = HeliumMlx(DEMO_DIRECTORY), []
    forward = program.model.model.run
    program.model.model.run = lambda h, *rest, **options: (sizes.append(h.shape[1]), forward(h, *rest, **options))[1]
    list(program.generate(random_prompt(20, 500), 1, 8))
    assert sizes == [8, 8, 4]


def test_bandwidth_is_bytes_over_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(1000))
    monkeypatch.setattr(benchmark_worker, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    # The clock goes a second a look; the copy moves the array twice.
    assert bandwidth(elements=2**16) == 2 * 4 * 2**16


def test_a_worker_answers_a_line_a_request() -> None:
    answers = io.StringIO()
    requests = [{"measure": "peak", "tokens": 3, "step_size": 2}, {"measure": "decode", "context": 3, "tokens": 4}]
    serve(
        "helium_mlx", DEMO_DIRECTORY, io.StringIO("".join(json.dumps(request) + "\n" for request in requests)), answers
    )
    loaded, peak, speed = lines(answers.getvalue())
    assert loaded["context"] == 4096
    assert loaded["weight_bytes"] == bytes_read_a_token(load_model(DEMO_DIRECTORY))
    assert isinstance(peak["value"], int)
    assert isinstance(speed["value"], float)


def test_an_error_is_an_answer(tmp_path: Path) -> None:
    answers = io.StringIO()
    serve("helium_mlx", tmp_path / "nowhere", io.StringIO(), answers)
    (answer,) = lines(answers.getvalue())
    assert "nowhere" in str(answer["error"])


def test_mlx_lm_continues_after_eos_and_says_what_it_cannot_open(tmp_path: Path) -> None:
    pytest.importorskip("mlx_lm")
    from helium_mlx.conversion.conversion import convert
    from helium_mlx.errors import HeliumError

    with pytest.raises(
        HeliumError, match=r"mlx-lm cannot open .*; convert it first: helium-mlx convert --hf-path \S+ --mlx-path DIR$"
    ):
        MlxLm(DEMO_DIRECTORY)
    convert(str(DEMO_DIRECTORY), str(tmp_path / "demo"), dtype="float32", verify=False)
    program, ours = MlxLm(tmp_path / "demo"), HeliumMlx(tmp_path / "demo")
    program.tokenizer.eos_token_ids = set(program.tokenizer.eos_token_ids)
    assert program.tokenizer.eos_token_ids == set()
    prompt = ours.tokenizer.encode("Once upon a time")
    theirs = [response.token for response in program.generate(prompt, 300)]  # pyright: ignore
    assert [chunk.token for chunk in ours.generate(prompt, 300)] == theirs  # pyright: ignore
    assert 2 in theirs
    assert (bytes_read_a_token(ours.model), ours.cache_bytes()) == (
        bytes_read_a_token(program.model),
        program.cache_bytes(),
    )
