import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from helium_mlx import cli
from helium_mlx import convert as convert_function
from helium_mlx.cli import COMMANDS

PROMPT = ["--model", "demo", "--prompt", "Once upon a time"]


def helium(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "helium_mlx", *arguments]
    return subprocess.run(command, capture_output=True, text=True, **options)  # pyright: ignore


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_every_flag(command: str) -> None:
    result = helium(command, "--help")
    assert result.returncode == 0
    parser = sys.modules.get(f"helium_mlx.{command}") or __import__(f"helium_mlx.{command}", fromlist=["main"])
    for action in parser.build_parser()._actions:
        assert action.help, action.dest
        assert not action.option_strings or action.option_strings[0] in result.stdout


def test_the_script_lists_its_commands() -> None:
    assert cli.main(["--help"]) == 0
    result = helium()
    assert result.returncode == 2
    assert all(command in result.stderr for command in COMMANDS)


def test_text_goes_to_standard_output_and_statistics_to_standard_error() -> None:
    result = helium("generate", *PROMPT, "--max-tokens", "12", "--ignore-eos")
    assert result.returncode == 0
    assert "tokens/s" in result.stderr
    assert "Peak memory" in result.stderr
    assert "tokens/s" not in result.stdout
    assert result.stdout.strip()


def test_quiet_says_nothing_but_the_text() -> None:
    result = helium("generate", *PROMPT, "--max-tokens", "12", "--quiet")
    assert result.stderr == ""


def test_json_is_an_object_a_line_and_nothing_else() -> None:
    plain = helium("generate", *PROMPT, "--max-tokens", "12", "--ignore-eos")
    result = helium("generate", *PROMPT, "--max-tokens", "12", "--ignore-eos", "--json")
    chunks = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(chunks) == 12
    assert "".join(chunk["text"] for chunk in chunks) == plain.stdout.removesuffix("\n")
    assert [chunk["finish_reason"] for chunk in chunks] == [None] * 11 + ["length"]


def test_a_prompt_comes_from_standard_input() -> None:
    piped = helium("generate", "--model", "demo", "--prompt", "-", "-m", "8", input="Once upon a time\n")
    assert piped.stdout == helium("generate", *PROMPT, "-m", "8").stdout


def test_sampling_flags_reach_the_sampler() -> None:
    base = ["generate", *PROMPT, "-m", "30", "--ignore-eos", "--temp", "1.5", "--seed", "3"]
    sampled = helium(*base).stdout
    assert sampled == helium(*base).stdout
    for flag in (["--top-k", "1"], ["--top-p", "0.01"], ["--min-p", "1"], ["--repetition-penalty", "1.9"]):
        assert helium(*base, *flag).stdout != sampled, flag
    greedy = helium("generate", *PROMPT, "-m", "30", "--ignore-eos").stdout
    assert helium(*base, "--top-k", "1").stdout == greedy


def test_stop_may_be_given_repeatedly() -> None:
    whole = helium("generate", *PROMPT, "-m", "40", "--ignore-eos").stdout
    result = helium("generate", *PROMPT, "-m", "40", "--ignore-eos", "--stop", "§", "--stop", whole[10:14])
    assert result.stdout == whole[: whole.find(whole[10:14])] + "\n"


def test_a_prompt_that_ends_in_a_space_is_warned_about() -> None:
    assert "space" in helium("generate", "--model", "demo", "--prompt", "Once upon ", "-m", "1").stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generate", "--model", "nowhere", "--prompt", "a"], "nowhere"),
        (["generate", *PROMPT, "--temp", "-1"], "temperature is -1"),
        (["generate", *PROMPT, "-m", "0"], "max_tokens is 0"),
        (["generate", "--model", "demo", "--prompt", "word" * 6000], "at most 4095 fit"),
        (["generate", "--model", "", "--prompt", "a"], "no such directory"),
        (["convert", "--hf-path", "nowhere", "--mlx-path", "x"], "nowhere"),
        (["convert", "--hf-path", "demo", "--mlx-path", "x", "-q", "--q-bits", "7"], "bits is 7"),
        (["convert", "--hf-path", "demo", "--mlx-path", "x", "--q-bits", "8"], "add -q"),
    ],
)
def test_a_users_mistake_is_one_line_and_status_1(tmp_path: Path, arguments: list[str], said: str) -> None:
    result = helium(*arguments, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert said in lines[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [["generate"], ["generate", *PROMPT, "--nonsense"], ["nonsense"], ["generate", *PROMPT, "-m", "few"]]
)
def test_wrong_usage_is_status_2(arguments: list[str]) -> None:
    result = helium(*arguments)
    assert result.returncode == 2
    assert "usage:" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_closed_pipe_is_silent() -> None:
    command = [sys.executable, "-m", "helium_mlx", "generate", *PROMPT, "-m", "2000", "--ignore-eos"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    assert "Traceback" not in process.stderr.read().decode()
    assert process.wait(timeout=60) == 0
    process.stderr.close()


def test_ctrl_c_ends_with_a_newline_and_130() -> None:
    command = [sys.executable, "-m", "helium_mlx", "generate", *PROMPT, "-m", "3900", "--ignore-eos"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.decode().endswith("\n")
    assert "Traceback" not in errors.decode()


def test_text_appears_as_it_is_made() -> None:
    command = [sys.executable, "-m", "helium_mlx", "generate", *PROMPT, "-m", "3000", "--ignore-eos"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    process.stdout.read(10)
    still_running = process.poll() is None
    process.kill()
    process.wait()
    process.stdout.close()
    assert still_running


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminated_conversion_leaves_nothing(tmp_path: Path, number: int) -> None:
    code = """
import sys, time
from helium_mlx import weight_files
from helium_mlx.convert import main
weight_files.SafetensorsWriter.write = lambda *_, **rows: (print("writing", flush=True), time.sleep(30))
sys.exit(main(["--hf-path", "demo", "--mlx-path", sys.argv[1]]))
"""
    command = [sys.executable, "-c", code, str(tmp_path / "x")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert os.listdir(tmp_path) == []


def test_output_that_cannot_be_written_is_one_line() -> None:
    with open("/dev/full" if os.path.exists("/dev/full") else os.devnull, "w") as full:
        command = [sys.executable, "-m", "helium_mlx", "generate", *PROMPT, "-m", "3"]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert "Traceback" not in result.stderr
    assert result.returncode == (1 if os.path.exists("/dev/full") else 0)


def test_closed_streams_are_no_traceback() -> None:
    line = f"{sys.executable} -m helium_mlx generate --model demo --prompt {{}} -m 3"
    for arguments, status in (("- <&-", 1), ("Bonjour >&-", 0)):
        result = subprocess.run(line.format(arguments), shell=True, capture_output=True, text=True)
        assert "Traceback" not in result.stderr
        assert result.returncode == status


def test_a_terminal_without_utf_8_gets_question_marks() -> None:
    for flags in ([], ["--json"]):
        result = helium(
            "generate", "--model", "demo", "--prompt", "Es war einmal ein Mädchen", "-m", "120", *flags,
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert "?" in result.stdout


def test_the_prompt_is_utf_8_whatever_the_locale() -> None:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    arguments = ["generate", "--model", "demo", "--prompt", "Il était une fois", "-m", "5", "--quiet", "--json"]
    runs = [helium(*arguments, env=env).stdout.splitlines() for env in (environment, None)]
    first, second = ([json.loads(line)["token"] for line in run] for run in runs)
    assert first == second


def test_the_dtype_flag_reaches_the_model(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from helium_mlx import loading
    from helium_mlx.generate import main

    asked, original = [], loading.load
    monkeypatch.setattr(
        loading, "load", lambda *names, **options: (asked.append(options), original(*names, **options))[1]
    )
    assert main([*PROMPT, "-m", "1", "--dtype", "float16"]) == 0
    assert asked == [{"revision": None, "dtype": "float16"}]


def test_without_a_model_the_published_one_is_asked_for(tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    result = helium("generate", "--prompt", "Bonjour", env=environment)
    assert result.returncode == 1
    errors = result.stderr.strip().splitlines()[-1]
    assert "mlx-community/helium-1-preview-2b-4bit" in errors
    assert "--model demo" in errors


def test_json_keeps_accents_as_they_are() -> None:
    result = helium("generate", "--model", "demo", "--prompt", "Il était une fois", "-m", "120", "--json")
    assert any(letter in result.stdout for letter in "éèàç")


def on_terminal(arguments: list[str]) -> str:
    reader, writer = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "helium_mlx", *arguments], stdout=subprocess.DEVNULL, stderr=writer
    )
    process.wait(timeout=60)
    os.close(writer)
    shown = b""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            block = os.read(reader, 4096)
        except OSError:
            break
        if not block:
            break
        shown += block
    os.close(reader)
    return shown.decode()


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(tmp_path: Path) -> None:
    arguments = ["convert", "--hf-path", "demo", "--overwrite", "--mlx-path", str(tmp_path / "x")]
    assert "\r" in on_terminal(arguments)
    plain = helium(*arguments)
    assert "\r" not in plain.stderr
    assert "Converting: 100%" in plain.stderr


def test_convert_py_is_the_same_command(tmp_path: Path) -> None:
    script = Path(__file__).parent.parent / "convert.py"
    arguments = ["--hf-path", "demo", "--mlx-path", str(tmp_path / "x"), "-q"]
    result = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True)
    assert result.returncode == 0
    assert (tmp_path / "x" / "model.safetensors").exists()


def test_parsers_name_the_functions_options() -> None:
    import inspect

    from helium_mlx.convert import build_parser

    function: Callable[..., object] = convert_function
    given = {action.dest for action in build_parser()._actions} - {"help"}
    options = {name for name in inspect.signature(function).parameters if not name.startswith("on_")}
    assert given == options


def test_a_prompt_cache_is_gone_on_with(tmp_path: Path) -> None:
    arguments = ["generate", "--model", "demo", "-m", "8", "--ignore-eos"]
    cold = helium(*arguments, "--prompt", "Once upon a time there was a girl").stdout
    cached = [*arguments, "--prompt-cache", str(tmp_path / "x.safetensors")]
    assert helium(*cached, "--prompt", "Once upon a time there was a boy").returncode == 0
    warm = helium(*cached, "--prompt", "Once upon a time there was a girl")
    assert warm.stdout == cold
    assert re.search(r"Prompt cache: 13 of 16 tokens", warm.stderr)


def test_a_warm_prompt_cache_changes_no_text_under_a_penalty(tmp_path: Path) -> None:
    prompt = "Once upon a time there was a boy called Arthur who lived near the harbour."
    arguments = ["generate", "--model", "demo", "-m", "20", "--repetition-penalty", "1.4", "--dtype", "float32"]
    arguments += ["--prompt", prompt, "--prompt-cache", str(tmp_path / "x")]
    cold, warm = helium(*arguments), helium(*arguments)
    assert warm.stdout == cold.stdout
    assert "Prompt cache: " in warm.stderr


def test_a_bias_that_is_none_is_wrong_usage() -> None:
    result = helium("generate", *PROMPT, "--logit-bias", "abc")
    assert result.returncode == 2
    assert "'abc' is not ID=VALUE" in result.stderr


def test_prompt_lookup_reports_what_it_guessed() -> None:
    prompt = "Once upon a time there was a boy called Arthur. Once upon a time there was a boy called Arthur. Once upon"
    arguments = ["generate", "--model", "demo", "--prompt", prompt, "-m", "20", "--ignore-eos"]
    plain, guessed = helium(*arguments), helium(*arguments, "--prompt-lookup", "6")
    assert guessed.stdout == plain.stdout
    assert re.search(r"Guessed: \d+ tokens, \d\.\d\d tokens a pass", guessed.stderr)
    assert "Guessed" not in plain.stderr


def test_a_long_run_says_what_its_cache_takes() -> None:
    result = helium("generate", *PROMPT, "-m", "2000", "--kv-bits", "8", "--max-kv-size", "64", "--stop", " ")
    assert result.returncode == 0
    assert re.search(r"KV cache: 1,728 bytes a token, 0\.2 MB for the 96 of 20\d\d tokens that it keeps", result.stderr)


def test_prompts_of_a_file_are_completed_as_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "prompts").write_text("Once upon a time\n\nEs war einmal\n")
    output = tmp_path / "out.jsonl"
    arguments = ["generate", "--model", "demo", "-m", "6", "--ignore-eos", "--prompt-file", str(tmp_path / "prompts")]
    result = helium(*arguments, "--output", str(output))
    assert result.returncode == 0, result.stderr
    records = {record["index"]: record for record in map(json.loads, output.read_text().splitlines())}
    solo = helium("generate", "--model", "demo", "-m", "6", "--ignore-eos", "--prompt", "Es war einmal", "-q").stdout
    assert sorted(records) == [0, 2]
    assert records[2]["text"] == solo.removesuffix("\n")
    again = helium(*arguments, "--output", str(output))
    assert "0 completions of 0 tokens, 2 were there already" in again.stderr


def test_samples_share_a_prompt_and_differ() -> None:
    result = helium("generate", *PROMPT, "-m", "8", "--num-samples", "3", "--temp", "1", "--seed", "1", "--json")
    texts = [json.loads(line)["text"] for line in result.stdout.splitlines()]
    assert len(texts) == 3
    assert len(set(texts)) >= 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "a", "--output", "x"], "--output is for the results of --prompt-file"),
        (["--prompt", "a", "--num-samples", "2", "--kv-bits", "8"], "--kv-bits is for a single completion"),
        (["--prompt-file", "x", "--prompt-cache", "y"], "--prompt-cache is for a single completion"),
        (["--prompt", "a", "--kv-bits", "3"], "kv_bits is 3"),
        (["--prompt", "a", "--prompt-cache", "/dev/null"], "name another file"),
        (["--prompt", "a", "--ban", "99999"], "banned_ids has the token 99999"),
        (["--prompt", "a", "--prompt-lookup", "-1"], "prompt_lookup is -1"),
    ],
)
def test_flags_that_do_not_go_together_are_named(arguments: list[str], message: str) -> None:
    result = helium("generate", "--model", "demo", *arguments)
    assert result.returncode == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
