"""Files of prompts: what is read, what is written, and what continues after an interruption."""

import fcntl
import functools
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest

import helium_mlx
from helium_mlx.errors import ContextOverflowError, GenerationError
from helium_mlx.generation import prompt_file
from helium_mlx.generation.batching import Completion, Request, batch_generate
from helium_mlx.generation.prompt_file import FilePrompt, PromptFileReport, read_prompts, run_prompt_file
from helium_mlx.generation.request import CompletionOptions
from helium_mlx.kv_cache import memory as cache_memory
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

Demo = tuple[HeliumForCausalLM, HeliumTokenizer]

LINES = ["Once upon a time", "", "Il était une fois", "A", "   ", "Es war einmal", "No dia 13"]
INDICES = [0, 2, 3, 5, 6]
# The end of every record.
MADE_BY = ["digest", "model"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(LINES) + "\n", encoding="utf-8")
    return path


def run(demo: Demo, path: Path, output: Path | None, **options: object) -> PromptFileReport:
    return run_prompt_file(*demo, path, output, **{"max_tokens": 4, "ignore_eos": True, "batch_size": 2, **options})  # pyright: ignore[reportArgumentType]


def records(output: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in output.read_bytes().splitlines()]


def sorted_records(output: Path) -> list[dict[str, object]]:
    return sorted(records(output), key=lambda record: (cast(int, record["index"]), cast(int, record.get("sample", 0))))


def test_a_text_file_has_a_prompt_a_line_and_empty_lines_count(prompts: Path) -> None:
    assert list(read_prompts(prompts)) == [FilePrompt(index, LINES[index]) for index in INDICES]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", b'"x"\r\n\n{"prompt": [1, 2], "max_tokens": 3, "id": {"a": null}}\n', ["x", [1, 2]]),
        ("a.txt", b'{"prompt": "x"}\n"y"', ["x", "y"]),
        ("a.txt", b'\n"x y"\nz\n', ['"x y"', "z"]),
        ("a", b'"x"\n{"prompt": "y"}\n', ['"x"', '{"prompt": "y"}']),
        ("a.txt", b"\xef\xbb\xbfx\ny", ["x", "y"]),
        ("a.txt", "«x»\u2028y\x0cz\r\n".encode(), ["«x»\u2028y\x0cz"]),
        ("a.txt", b" two  spaces \n12\n[3]\n", [" two  spaces ", "12", "[3]"]),
        ("a.txt", b"12\n" + b"[" * 100_000, ["12", "[" * 100_000]),
        ("a.txt", b"", []),
    ],
)
def test_what_a_line_is(tmp_path: Path, name: str, content: bytes, expected: list[object]) -> None:
    (tmp_path / name).write_bytes(content)
    assert [line.prompt for line in read_prompts(tmp_path / name)] == expected


BAD: dict[str, tuple[bytes, str]] = {
    "half a line": (b'"a"\n{"prompt": "b', "line 2: is not JSON"),
    "a number": (b'"a"\n\n3\n', "line 3: is 3; expected a string, or an object"),
    "a list": (b'"a"\n[1]\n', "line 2: is \\[1\\]; expected"),
    "no prompt": (b'{"id": 1}\n', 'line 1: "prompt" is None; expected text or a list of token ids'),
    "no ids": (b'{"prompt": [1, true]}\n', 'line 1: "prompt" is \\[1, True\\]'),
    "another field": (b'{"prompt": "a", "temperature": 1}\n', "line 1: 'temperature' is not a field of a prompt"),
    "max_tokens 0": (b'{"prompt": "a", "max_tokens": 0}\n', 'line 1: "max_tokens" is 0'),
    "a truth": (b'{"prompt": "a", "max_tokens": true}\n', 'line 1: "max_tokens" is True'),
    "no UTF-8": (b'"a"\n"\xff"\n', "line 2: byte 1 is not UTF-8"),
    "very deep": (b'"a"\n' + b"[" * 200_000 + b"\n", "line 2: is not JSON"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_named_before_anything_runs(demo: Demo, tmp_path: Path, name: str) -> None:
    content, said = BAD[name]
    path, output = tmp_path / "a.jsonl", tmp_path / "out"
    path.write_bytes(content)
    with pytest.raises(GenerationError, match=said) as caught:
        run(demo, path, output)
    assert "\n" not in str(caught.value)
    assert output.read_bytes() == b""


def test_results_are_the_solo_runs(demo: Demo, prompts: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    assert run(demo, prompts, output) == PromptFileReport(5, 0, 20)
    for record, index in zip(sorted_records(output), INDICES, strict=True):
        text = helium_mlx.generate(*demo, LINES[index], max_tokens=4, ignore_eos=True)
        shown = ["text", "leading_space", "finish_reason", "stop_string"]
        assert list(record) == ["index", *shown, "prompt_tokens", "generated_tokens", *MADE_BY]
        assert (record["index"], record["text"], record["finish_reason"]) == (index, text, "length")
        assert record["prompt_tokens"] == len(demo[1].encode(LINES[index]))
        assert record["generated_tokens"] == 4


def test_a_line_has_its_own_limit_and_its_id_comes_back(demo: Demo, tmp_path: Path) -> None:
    path, output = tmp_path / "a.jsonl", tmp_path / "out.jsonl"
    ids = ["x", None, 7, ["\ud800", 1.5]]
    lines = [json.dumps({"prompt": "A", "max_tokens": n + 1, "id": own}) for n, own in enumerate(ids)]
    path.write_text("\n".join(lines))
    run(demo, path, output)
    assert [(r["id"], r["generated_tokens"]) for r in sorted_records(output)] == [
        (own, n + 1) for n, own in enumerate(ids)
    ]


@pytest.mark.parametrize("survivors", range(5))
@pytest.mark.parametrize("cut", ["whole", "half", "a byte"])
def test_after_an_end_at_any_record_only_the_rest_is_done(
    demo: Demo, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survivors: int, cut: str
) -> None:
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    run(demo, prompts, whole)
    lines = whole.read_bytes().splitlines(keepends=True)
    rest = lines[survivors]
    there = b"".join(lines[:survivors]) + {"whole": b"", "half": rest[: len(rest) // 2], "a byte": rest[:1]}[cut]
    output.write_bytes(there)
    begun = []

    @functools.wraps(batch_generate)
    def watched(model: object, tokenizer: object, requests: Iterator[Request], **options: object) -> object:
        return cast(Callable[..., object], batch_generate)(
            model, tokenizer, (begun.append(request.index) or request for request in requests), **options
        )

    monkeypatch.setattr(prompt_file, "batch_generate", watched)
    report = run(demo, prompts, output, batch_size=1)
    assert (report.written, report.already_there) == (5 - survivors, survivors)
    assert sorted(begun) == sorted(record["index"] for record in records(whole)[survivors:])  # pyright: ignore
    assert sorted_records(output) == sorted_records(whole)
    assert run(demo, prompts, output) == PromptFileReport(0, 5, 0)


def test_an_interruption_leaves_what_was_finished(
    demo: Demo, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, write = tmp_path / "out.jsonl", prompt_file._Results.write

    def interrupted(self: prompt_file._Results, completion: Completion) -> None:
        if completion.index == 3:
            raise KeyboardInterrupt
        write(self, completion)

    monkeypatch.setattr(prompt_file._Results, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(demo, prompts, output, batch_size=1)
    assert [record["index"] for record in records(output)] == [0, 2]


def test_a_killed_process_has_written_what_had_ended(tmp_path: Path) -> None:
    path, output = tmp_path / "a.txt", tmp_path / "out.jsonl"
    path.write_text("A\n" * 10_000)
    code = (
        "import sys, helium_mlx; from helium_mlx.generation.prompt_file import run_prompt_file;"
        "run_prompt_file(*helium_mlx.load('demo'), *sys.argv[1:], max_tokens=3,"
        "on_progress=lambda done, total: print(done, flush=True))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, path, output], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    said = [int(process.stdout.readline()) for _ in range(5)]
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert said == [1, 2, 3, 4, 5]
    complete = [line for line in output.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    assert len(complete) >= 5
    assert [json.loads(line)["generated_tokens"] for line in complete] == [3] * len(complete)


def test_missing_samples_are_done_and_no_others(demo: Demo, prompts: Path, tmp_path: Path) -> None:
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    options = {"samples": 3, "temperature": 1.0, "seed": 5}
    run(demo, prompts, whole, **options)
    kept = [line for n, line in enumerate(whole.read_bytes().splitlines(keepends=True)) if n % 4]
    output.write_bytes(b"".join(kept))
    assert run(demo, prompts, output, **options).written == 15 - len(kept)
    assert sorted_records(output) == sorted_records(whole)
    assert [(r["index"], r["sample"]) for r in sorted_records(whole)] == [(i, s) for i in INDICES for s in range(3)]


FOREIGN: dict[str, dict[str, object]] = {
    "another limit": {"max_tokens": 5},
    "a stop string": {"stop": "."},
    "a token that ends a text": {"extra_eos": "."},
    "a temperature": {"temperature": 0.5},
    "a penalty": {"presence_penalty": 0.5},
    "another penalty": {"frequency_penalty": 0.5},
    "a seed": {"seed": 1},
    "more samples": {"samples": 2},
}


@pytest.mark.parametrize("name", FOREIGN)
def test_results_of_other_options_are_refused_untouched(demo: Demo, prompts: Path, tmp_path: Path, name: str) -> None:
    output = tmp_path / "out.jsonl"
    run(demo, prompts, output)
    output.write_bytes(output.read_bytes()[:-9])
    before = output.read_bytes()
    with pytest.raises(GenerationError, match=r"has a result for index .*other options made it"):
        run(demo, prompts, output, **FOREIGN[name])
    assert output.read_bytes() == before


def test_an_option_that_an_older_version_did_not_know_and_that_asks_for_nothing_is_no_other() -> None:
    known = prompt_file._shaping(CompletionOptions(), 1)
    assert not {"extra_eos", "presence_penalty", "frequency_penalty"} & known.keys()


@pytest.mark.parametrize("change", ["weights", "tokenizer", "dtype"])
def test_results_of_another_model_are_refused_untouched(
    demo: Demo, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    output = tmp_path / "out.jsonl"
    run(demo, prompts, output)
    output.write_bytes(b"".join(output.read_bytes().splitlines(keepends=True)[:2]))
    before = output.read_bytes()
    model, tokenizer = helium_mlx.load("demo", dtype="float16" if change == "dtype" else "float32")
    if change == "weights":
        norm = model.model.norm
        norm.weight = norm.weight * 1.01
    if change == "tokenizer":
        monkeypatch.setattr(tokenizer, "pad_token_id", 0)
    with pytest.raises(GenerationError, match=r"index \d, but a model with other weights, tokenizer or dtype made it"):
        run((model, tokenizer), prompts, output)
    assert output.read_bytes() == before


def test_where_a_model_lies_makes_no_difference(demo: Demo, prompts: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    run(demo, prompts, output)
    shutil.copytree(Path(helium_mlx.__file__).parent / "demo", tmp_path / "moved")
    assert run(helium_mlx.load(str(tmp_path / "moved"), dtype="float32"), prompts, output) == PromptFileReport(0, 5, 0)


def test_a_prompt_longer_than_the_context_is_named_by_its_line_before_anything_runs(
    demo: Demo, prompts: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    with prompts.open("a") as file:
        file.write("\n" + "word" * 6000 + "\n")
    with pytest.raises(ContextOverflowError, match=r"prompts.txt, line 9: the prompt has \d+ tokens; at most 4096 fit"):
        run(demo, prompts, output)
    assert output.read_bytes() == b""


def test_a_batch_that_memory_has_no_room_for_is_refused_before_anything_runs(
    demo: Demo, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, model = tmp_path / "out.jsonl", demo[0]
    longest = max(len(demo[1].encode(LINES[index])) for index in INDICES) + 4
    row = cache_memory.cache_bytes(model.config, longest, dtype=model.model.norm.weight.dtype)
    monkeypatch.setattr(cache_memory, "working_set_bytes", lambda: cache_memory.bytes_in_memory(model) + 3 * row)
    with pytest.raises(GenerationError, match=rf"for 5 rows of {longest} tokens are over .*; give batch_size 3"):
        run(demo, prompts, output, batch_size=9)
    assert output.read_bytes() == b""
    assert run(demo, prompts, output, batch_size=3).written == 5
    # What is there already needs no room.
    monkeypatch.setattr(cache_memory, "working_set_bytes", lambda: 0)
    assert run(demo, prompts, output).already_there == 5


def test_results_of_other_prompts_are_refused_untouched(demo: Demo, prompts: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    run(demo, prompts, output)
    before = output.read_bytes()
    prompts.write_text("Twice upon a time\n", encoding="utf-8")
    with pytest.raises(GenerationError, match="index 0, but another prompt"):
        run(demo, prompts, output)
    prompts.write_text(LINES[0], encoding="utf-8")
    with pytest.raises(GenerationError, match=r"index \d, but .*prompts.txt has no such prompt"):
        run(demo, prompts, output)
    assert output.read_bytes() == before


def test_options_that_do_not_shape_a_completion_may_change(demo: Demo, prompts: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    run(demo, prompts, output, stop="§")
    report = run(demo, prompts, output, batch_size=5, prefill_step_size=7, stop=("§",), temperature=0.0)
    assert report == PromptFileReport(0, 5, 0)


@pytest.mark.parametrize(
    "content",
    [b"my notes\n", b"my notes", b'{"index": 1}\n', b'{"index": 1, "digest": ""}\n', b"[]\n", b"\n", b'{"a": "b"}'],
)
def test_any_other_file_is_no_output(demo: Demo, prompts: Path, tmp_path: Path, content: bytes) -> None:
    output = tmp_path / "notes"
    output.write_bytes(content)
    with pytest.raises(GenerationError, match="line 1 is not a result of a prompt file; choose another output file"):
        run(demo, prompts, output)
    assert output.read_bytes() == content


def test_two_runs_do_not_write_one_file(demo: Demo, prompts: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    with open(output, "ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(GenerationError, match="is being written by another run"):
            run(demo, prompts, output)


class Standard:
    """Standard input or output of bytes."""

    def __init__(self, buffer: object) -> None:
        self.buffer = buffer


@pytest.fixture
def standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], None]]:
    """Have standard input hold something."""
    path = tmp_path / "stdin"
    with path.open("w+b") as file:

        def hold(content: bytes) -> None:
            path.write_bytes(content)
            monkeypatch.setattr(sys, "stdin", Standard(file))

        yield hold


@pytest.mark.parametrize("output", [None, "-"])
def test_from_standard_input_to_standard_output(
    demo: Demo,
    tmp_path: Path,
    standard_input: Callable[[bytes], None],
    monkeypatch: pytest.MonkeyPatch,
    output: str | None,
) -> None:
    out = io.BytesIO()
    standard_input(b"A\n\nIl\n")
    monkeypatch.setattr(sys, "stdout", Standard(out))
    monkeypatch.chdir(tmp_path)
    report = run_prompt_file(*demo, "-", output, max_tokens=3)
    monkeypatch.undo()
    assert report.written == 2
    assert [json.loads(line)["index"] for line in out.getvalue().splitlines()] == [0, 2]
    assert not (tmp_path / "-").exists()


class Partner:
    """Standard output into a program that sends more of its prompts for every result, and hangs up after the last."""

    def __init__(self, prompts: list[bytes], pipe: int) -> None:
        self.results: list[bytes] = []
        self.prompts = prompts
        self.pipe = pipe
        self.send()

    def send(self) -> None:
        if self.prompts:
            os.write(self.pipe, self.prompts.pop(0))
        else:
            os.close(self.pipe)

    def write(self, record: bytes) -> None:
        self.results.append(record)
        self.send()

    def flush(self) -> None:
        pass


def test_a_prompt_of_a_pipe_runs_when_it_has_come_whole(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    out = Partner([b"A\n", b"\nOnce\nIl", b"l\n"], writing)
    with open(reading, "rb") as pipe:
        monkeypatch.setattr(sys, "stdin", Standard(pipe))
        monkeypatch.setattr(sys, "stdout", Standard(out))
        run_prompt_file(*demo, "-", max_tokens=3)
    monkeypatch.undo()
    assert [json.loads(line)["index"] for line in out.results] == [0, 2, 3]


def test_a_bad_line_of_a_pipe_loses_none_before_it(
    demo: Demo, tmp_path: Path, standard_input: Callable[[bytes], None]
) -> None:
    output = tmp_path / "out.jsonl"
    standard_input(b'{"prompt": "A"}\n"B"\n3\n"C"\n')
    with pytest.raises(GenerationError, match="standard input, line 3: is 3"):
        run_prompt_file(*demo, "-", output, max_tokens=3, batch_size=8)
    assert [record["index"] for record in records(output)] == [0, 1]


def test_progress_counts_what_was_there(demo: Demo, prompts: Path, tmp_path: Path) -> None:
    output, shown = tmp_path / "out.jsonl", []
    run(demo, prompts, output)
    output.write_bytes(b"".join(output.read_bytes().splitlines(keepends=True)[:2]))
    run(demo, prompts, output, on_progress=lambda done, total: shown.append((done, total)))
    assert shown == [(3, 5), (4, 5), (5, 5)]


def test_a_file_that_is_not_there_is_an_error_of_the_system(demo: Demo, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        run(demo, tmp_path / "none", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_processors_are_refused_as_no_result_could_name_them(demo: Demo, prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(GenerationError, match="logits_processors are functions"):
        run(demo, prompts, tmp_path / "out", logits_processors=[lambda ids, scores: scores])
    assert not (tmp_path / "out").exists()
