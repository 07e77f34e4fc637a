import importlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from processes import EXAMPLES, on_terminal, run_command, run_python

from helium_mlx import cli
from helium_mlx import convert as convert_function
from helium_mlx.cli import COMMANDS
from helium_mlx.errors import HeliumError
from helium_mlx.files.hub import DEMO_DIRECTORY
from helium_mlx.terminal import flags_of, in_flags

PROMPT = ["--model", "demo", "--prompt", "Once upon a time"]

# Runs a command that is stuck in its fortieth forward pass.
STUCK = """
import sys, time
from helium_mlx.cli import main
from helium_mlx.model.helium import HeliumForCausalLM

logits_after, calls = HeliumForCausalLM.logits_after, 0

def stuck(*arguments, **options):
    global calls
    calls += 1
    while calls == 40:
        time.sleep(0.01)
    return logits_after(*arguments, **options)

HeliumForCausalLM.logits_after = stuck
sys.exit(main())
"""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_every_flag(command: str) -> None:
    result = run_command(command, "--help")
    assert result.returncode == 0
    parser = sys.modules.get(f"helium_mlx.{command}") or __import__(f"helium_mlx.{command}", fromlist=["main"])
    for action in parser.build_parser()._actions:
        assert action.help, action.dest
        assert not action.option_strings or action.option_strings[0] in result.stdout


def test_the_script_lists_its_commands() -> None:
    assert cli.main(["--help"]) == 0
    result = run_command()
    assert result.returncode == 2
    assert all(command in result.stderr for command in COMMANDS)


def test_text_goes_to_standard_output_and_statistics_to_standard_error() -> None:
    result = run_command("generate", *PROMPT, "--max-tokens", "12", "--ignore-eos")
    assert result.returncode == 0
    assert "tokens/s" in result.stderr
    assert "Peak memory" in result.stderr
    assert "tokens/s" not in result.stdout
    assert result.stdout.strip()


def test_quiet_says_nothing_but_the_text() -> None:
    result = run_command("generate", *PROMPT, "--max-tokens", "12", "--quiet")
    assert result.stderr == ""


def test_json_is_an_object_a_line_and_nothing_else() -> None:
    plain = run_command("generate", *PROMPT, "--max-tokens", "12", "--ignore-eos")
    result = run_command("generate", *PROMPT, "--max-tokens", "12", "--ignore-eos", "--json")
    chunks = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(chunks) == 12
    assert "".join(chunk["text"] for chunk in chunks) == plain.stdout.removesuffix("\n")
    assert [chunk["finish_reason"] for chunk in chunks] == [None] * 11 + ["length"]


def test_a_prompt_comes_from_standard_input() -> None:
    piped = run_command("generate", "--model", "demo", "--prompt", "-", "-m", "8", input="Once upon a time\n")
    assert piped.stdout == run_command("generate", *PROMPT, "-m", "8").stdout


def test_sampling_flags_reach_the_sampler() -> None:
    base = ["generate", *PROMPT, "-m", "30", "--ignore-eos", "--temp", "1.5", "--seed", "3"]
    sampled = run_command(*base).stdout
    assert sampled == run_command(*base).stdout
    for flag in (["--top-k", "1"], ["--top-p", "0.01"], ["--min-p", "1"], ["--repetition-penalty", "1.9"]):
        assert run_command(*base, *flag).stdout != sampled, flag
    greedy = run_command("generate", *PROMPT, "-m", "30", "--ignore-eos").stdout
    assert run_command(*base, "--top-k", "1").stdout == greedy


def test_stop_may_be_given_repeatedly() -> None:
    whole = run_command("generate", *PROMPT, "-m", "40", "--ignore-eos").stdout
    result = run_command("generate", *PROMPT, "-m", "40", "--ignore-eos", "--stop", "§", "--stop", whole[10:14])
    assert result.stdout == whole[: whole.find(whole[10:14])] + "\n"


def test_a_prompt_that_ends_in_a_space_is_warned_about() -> None:
    assert "space" in run_command("generate", "--model", "demo", "--prompt", "Once upon ", "-m", "1").stderr


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["generate", "--model", "nowhere", "--prompt", "a"], 1, "nowhere"),
        (["generate", "--model", "demo", "--prompt", "word" * 6000], 1, "at most 4096 fit"),
        (["generate", "--model", "", "--prompt", "a"], 1, "no such directory"),
        (["convert", "--hf-path", "nowhere", "--mlx-path", "x"], 1, "nowhere"),
        (["export", "--model", "nowhere", "--output", "x"], 1, "nowhere"),
        (
            ["export", "--model", "demo", "--output", "x", "--context", "5000"],
            2,
            "--context is 5000; it must be from 2",
        ),
        (["upload", "--path", "x", "--repo", "a/b", "--revision", "0" * 40], 2, "--revision is the commit 0000"),
    ],
)
def test_a_users_mistake_is_one_line_and_status_1_or_2(
    tmp_path: Path, arguments: list[str], status: int, said: str
) -> None:
    result = run_command(*arguments, cwd=tmp_path)
    assert result.returncode == status
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert said in lines[0]
    assert list(tmp_path.iterdir()) == []


# No checkpoint by this name is looked for: what no model could be run with is refused before one is downloaded.
NOWHERE = ["--model", "nowhere/at-all", "--prompt", "a"]
CONVERT = ["convert", "--hf-path", "nowhere/at-all", "--mlx-path", "x"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generate", *NOWHERE, "--temp", "-1"], "--temp is -1.0; it must be a finite number, 0 or more"),
        (["generate", *NOWHERE, "--temp", "nan"], "--temp is nan; it must be"),
        (["generate", *NOWHERE, "-m", "0"], "--max-tokens is 0; it must be a whole number, at least 1"),
        (["generate", *NOWHERE, "--top-p", "1.5"], "--top-p is 1.5; it must be above 0 and at most 1"),
        (["generate", *NOWHERE, "--top-k", "-1"], "--top-k is -1; it must be"),
        (["generate", *NOWHERE, "--min-p", "2"], "--min-p is 2.0; it must be from 0 to 1"),
        (["generate", *NOWHERE, "--repetition-penalty", "0"], "--repetition-penalty is 0.0; it must be"),
        (["generate", *NOWHERE, "--repetition-context-size", "0"], "--repetition-context-size is 0; it must be"),
        (["generate", *NOWHERE, "--seed", "-1"], "--seed is -1; it must be a whole number from 0 to 2^64 - 1"),
        (["generate", *NOWHERE, "--ban", "-1"], "--ban has the token -1; token ids are"),
        (["generate", *NOWHERE, "--logit-bias", "5=inf"], "--logit-bias has inf for token 5; it must be"),
        (["generate", *NOWHERE, "--stop", ""], "--stop is ['']; it must be text"),
        (["generate", *NOWHERE, "--max-kv-size", "1"], "--max-kv-size is 1; it must be a whole number from 2 to"),
        (["generate", *NOWHERE, "--kv-bits", "3"], "--kv-bits is 3; it must be 4, 5, 6 or 8"),
        (["generate", *NOWHERE, "--kv-group-size", "7"], "--kv-group-size is 7; it must be 32, 64 or 128"),
        (["generate", *NOWHERE, "--batch-size", "0"], "--batch-size is 0; it must be"),
        (["generate", *NOWHERE, "--num-samples", "0"], "--num-samples is 0; it must be"),
        (["generate", *NOWHERE, "--prefill-step-size", "0"], "--prefill-step-size is 0; it must be"),
        (["generate", *NOWHERE, "--prompt-lookup", "-1"], "--prompt-lookup is -1; it must be"),
        (["generate", *PROMPT, "--ban", "99999"], "--ban has the token 99999; the model's ids are 0 to"),
        (["generate", *PROMPT, "--kv-bits", "8", "--kv-group-size", "128"], "--kv-group-size is 128, which does not"),
        (["generate", *NOWHERE, "--output", "x"], "--output is for the results of --prompt-file"),
        (["generate", *NOWHERE, "--num-samples", "2", "--kv-bits", "8"], "--kv-bits is for a single completion"),
        ([*CONVERT, "-q", "--q-bits", "7"], "--q-bits is 7; mode 'affine' allows"),
        ([*CONVERT, "-q", "--q-group-size", "7"], "--q-group-size is 7"),
        ([*CONVERT, "--q-bits", "8"], "--q-bits is given, but the checkpoint is not to be quantized; add --quantize"),
        ([*CONVERT, "--recipe", "none"], "--recipe is 'none'; known are"),
        ([*CONVERT, "--max-shard-size", "many"], "--max-shard-size"),
        (["benchmark", "--runs", "0"], "--runs is 0; it must be a whole number, at least 1"),
        (["benchmark", "--contexts", "16", "-2"], "--contexts is -2; it must be a whole number, at least 1"),
        (["benchmark", "--plot", "x.gif"], "--plot is x.gif; its name must end in"),
    ],
)
def test_a_flag_out_of_range_is_one_line_with_its_name_and_status_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert cli.main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"error: {said}")
    assert len(shown.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [["generate"], ["generate", *PROMPT, "--nonsense"], ["nonsense"], ["generate", *PROMPT, "-m", "few"]]
)
def test_wrong_usage_is_status_2(arguments: list[str]) -> None:
    result = run_command(*arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and len(result.stderr.splitlines()) == 1


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
    command = [sys.executable, "-c", STUCK, "generate", *PROMPT, "-m", "50", "--ignore-eos"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.decode().endswith("\n")
    assert "Traceback" not in errors.decode()


def test_text_appears_as_it_is_made() -> None:
    command = [sys.executable, "-c", STUCK, "generate", *PROMPT, "-m", "50", "--ignore-eos"]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=buffered)
    assert process.stdout is not None
    # Only a text that is held back is waited for so long.
    patience = threading.Timer(120, process.kill)
    patience.start()
    shown = process.stdout.read(10)
    patience.cancel()
    process.kill()
    process.wait()
    process.stdout.close()
    assert len(shown) == 10


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminated_conversion_leaves_nothing(tmp_path: Path, number: int) -> None:
    code = """
import sys, time
from helium_mlx.checkpoint import weight_files
from helium_mlx.convert import main
def stuck(*_, **rows):
    print("writing", flush=True)
    while True:
        time.sleep(0.01)
weight_files.SafetensorsWriter.write = stuck
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
    if os.path.exists("/dev/full"):
        assert result.stderr.splitlines()[-1] == "error: No space left on device: standard output"


def test_closed_streams_are_no_traceback() -> None:
    line = f"{sys.executable} -m helium_mlx generate --model demo --prompt {{}} -m 3"
    for arguments, status in (("- <&-", 1), ("Bonjour >&-", 0)):
        result = subprocess.run(line.format(arguments), shell=True, capture_output=True, text=True)
        assert "Traceback" not in result.stderr
        assert result.returncode == status


def test_a_terminal_without_utf_8_gets_question_marks() -> None:
    arguments = ["generate", "--model", "demo", "--prompt", "Es war einmal ein Mädchen", "-m", "120"]
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    result = run_command(*arguments, env=ascii_only)
    assert result.returncode == 0, result.stderr
    assert "?" in result.stdout


def test_json_loses_no_character_on_a_terminal_without_utf_8() -> None:
    arguments = ["generate", "--model", "demo", "--prompt", "Es war einmal ein Mädchen", "-m", "120", "--json"]
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    lines, escaped = (
        run_command(*arguments).stdout.splitlines(),
        run_command(*arguments, env=ascii_only).stdout.splitlines(),
    )
    assert [json.loads(line)["text"] for line in escaped] == [json.loads(line)["text"] for line in lines]
    assert any("\\u" in line for line in escaped)


def test_the_prompt_is_utf_8_whatever_the_locale() -> None:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    arguments = ["generate", "--model", "demo", "--prompt", "Il était une fois", "-m", "5", "--quiet", "--json"]
    runs = [run_command(*arguments, env=env).stdout.splitlines() for env in (environment, None)]
    first, second = ([json.loads(line)["token"] for line in run] for run in runs)
    assert first == second


def test_the_dtype_flag_reaches_the_model(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from helium_mlx.generate import main
    from helium_mlx.model import loading

    asked, original = [], loading.load
    monkeypatch.setattr(
        loading, "load", lambda *names, **options: (asked.append(options), original(*names, **options))[1]
    )
    assert main([*PROMPT, "-m", "1", "--dtype", "float16"]) == 0
    assert asked == [{"revision": None, "subfolder": None, "dtype": "float16"}]


def test_without_a_model_the_published_one_is_asked_for(tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    result = run_command("generate", "--prompt", "Bonjour", env=environment)
    assert result.returncode == 1
    errors = result.stderr.strip().splitlines()[-1]
    assert "mlx-community/helium-1-preview-2b-4bit" in errors
    assert "or try 'demo'" in errors


def test_json_keeps_accents_as_they_are() -> None:
    result = run_command("generate", "--model", "demo", "--prompt", "Il était une fois", "-m", "120", "--json")
    assert any(letter in result.stdout for letter in "éèàç")


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(tmp_path: Path) -> None:
    arguments = ["convert", "--hf-path", "demo", "--overwrite", "--mlx-path", str(tmp_path / "x")]
    assert "\r" in on_terminal("-m", "helium_mlx", *arguments)
    plain = run_command(*arguments)
    assert "\r" not in plain.stderr
    assert "Converting: 100%" in plain.stderr


def test_convert_py_is_the_same_command(tmp_path: Path) -> None:
    script = Path(__file__).parent.parent / "convert.py"
    arguments = ["--hf-path", "demo", "--mlx-path", str(tmp_path / "x"), "-q"]
    result = run_python(script, *arguments)
    assert result.returncode == 0
    assert (tmp_path / "x" / "model.safetensors").exists()


def test_parsers_name_the_functions_options() -> None:
    import inspect

    from helium_mlx.convert import build_parser

    function: Callable[..., object] = convert_function
    given = {action.dest for action in build_parser()._actions} - {"help", "quiet"}
    options = {name for name in inspect.signature(function).parameters if not name.startswith("on_")}
    assert given == options


def test_a_prompt_cache_is_gone_on_with(tmp_path: Path) -> None:
    arguments = ["generate", "--model", "demo", "-m", "8", "--ignore-eos"]
    cold = run_command(*arguments, "--prompt", "Once upon a time there was a girl").stdout
    cached = [*arguments, "--prompt-cache", str(tmp_path / "x.safetensors")]
    assert run_command(*cached, "--prompt", "Once upon a time there was a boy").returncode == 0
    warm = run_command(*cached, "--prompt", "Once upon a time there was a girl")
    assert warm.stdout == cold
    assert re.search(r"Prompt cache: 13 of 16 tokens", warm.stderr)


def test_a_warm_prompt_cache_changes_no_text_under_a_penalty(tmp_path: Path) -> None:
    prompt = "Once upon a time there was a boy called Arthur who lived near the harbour."
    arguments = ["generate", "--model", "demo", "-m", "20", "--repetition-penalty", "1.4", "--dtype", "float32"]
    arguments += ["--prompt", prompt, "--prompt-cache", str(tmp_path / "x")]
    cold, warm = run_command(*arguments), run_command(*arguments)
    assert warm.stdout == cold.stdout
    assert "Prompt cache: " in warm.stderr


def test_a_bias_that_is_none_is_wrong_usage() -> None:
    result = run_command("generate", *PROMPT, "--logit-bias", "abc")
    assert result.returncode == 2
    assert "'abc' is not TOKEN=VALUE" in result.stderr


@pytest.mark.parametrize(
    ("given", "status", "said"),
    [
        ("--extra-eos=", 2, "a token is empty; expected an id, or a text that is one token"),
        ("--ban=", 2, "a token is empty"),
        ("--logit-bias==1", 2, "'=1' is not TOKEN=VALUE"),
        ("--extra-eos=a boy", 2, "--extra-eos: 'a boy' is 3 tokens"),
        ("--extra-eos=--5", 2, "--extra-eos: '--5' is"),
        ("--extra-eos=-5", 2, "--extra-eos has -5; expected ids of tokens"),
        (f"--ban={'9' * 5000}", 2, "--ban: '999"),
        ("--extra-eos=\udcff", 2, "lone surrogate"),
        ("--ban=\udcff", 2, "lone surrogate"),
        ("--stop=\udcff", 2, "lone surrogate"),
        ("--prompt=caf\udce9", 2, "--prompt is not UTF-8 (byte 0xe9 at position 3)"),
    ],
)
def test_what_is_no_token_is_refused_in_one_short_line(given: str, status: int, said: str) -> None:
    result = run_command("generate", *PROMPT, "--quiet", given)
    [line] = result.stderr.splitlines()
    assert (result.returncode, result.stdout) == (status, "")
    assert said in line
    assert len(line) < 400


def test_prompt_lookup_reports_what_it_guessed() -> None:
    prompt = "Once upon a time there was a boy called Arthur. Once upon a time there was a boy called Arthur. Once upon"
    arguments = ["generate", "--model", "demo", "--prompt", prompt, "-m", "20", "--ignore-eos"]
    plain, guessed = run_command(*arguments), run_command(*arguments, "--prompt-lookup", "6")
    assert guessed.stdout == plain.stdout
    assert re.search(r"Guessed: \d+ tokens, and \d+ in vain, \d\.\d\d tokens a pass", guessed.stderr)
    assert "Guessed" not in plain.stderr
    lines = run_command(*arguments, "--prompt-lookup", "6", "--json").stdout.splitlines()
    chunks = [json.loads(line) for line in lines]
    assert sum(chunk["from_draft"] for chunk in chunks) == chunks[-1]["accepted_tokens"] > 0
    assert chunks[-1]["drafted_tokens"] >= chunks[-1]["accepted_tokens"]


def test_a_long_run_says_what_its_cache_takes() -> None:
    result = run_command("generate", *PROMPT, "-m", "2000", "--kv-bits", "8", "--max-kv-size", "64", "--stop", " ")
    assert result.returncode == 0
    assert re.search(r"KV cache: 1,728 bytes a token, 0\.2 MB for the 96 of 20\d\d tokens that it keeps", result.stderr)


def test_prompts_of_a_file_are_completed_as_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "prompts").write_text("Once upon a time\n\nEs war einmal\n")
    output = tmp_path / "out.jsonl"
    arguments = ["generate", "--model", "demo", "-m", "6", "--ignore-eos", "--prompt-file", str(tmp_path / "prompts")]
    result = run_command(*arguments, "--output", str(output))
    assert result.returncode == 0, result.stderr
    records = {record["index"]: record for record in map(json.loads, output.read_text().splitlines())}
    solo = run_command(
        "generate", "--model", "demo", "-m", "6", "--ignore-eos", "--prompt", "Es war einmal", "--quiet"
    ).stdout
    assert sorted(records) == [0, 2]
    assert records[2]["text"] == solo.removesuffix("\n")
    again = run_command(*arguments, "--output", str(output))
    assert "0 completions of 0 tokens, 2 were there already" in again.stderr


def test_samples_share_a_prompt_and_differ() -> None:
    result = run_command("generate", *PROMPT, "-m", "8", "--num-samples", "3", "--temp", "1", "--seed", "1", "--json")
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [record["sample"] for record in records] == [0, 1, 2]
    assert len({record["text"] for record in records}) >= 2


def test_all_of_jsons_records_of_completions_have_the_same_fields(tmp_path: Path) -> None:
    (tmp_path / "prompts").write_text("Once upon a time\n")
    arguments = ["generate", "--model", "demo", "-m", "3", "--num-samples", "2", "--json"]
    samples = run_command(*arguments, "--prompt", "Once upon a time").stdout.splitlines()
    filed = run_command(*arguments, "--prompt-file", str(tmp_path / "prompts")).stdout.splitlines()
    for sample, record in zip(map(json.loads, samples), map(json.loads, filed), strict=True):
        assert list(record) == [*sample, "digest", "model"]
        assert {name: record[name] for name in sample} == sample


def test_a_bad_field_of_a_prompt_file_is_named_as_a_field(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    arguments = ["generate", "--model", "demo", "--prompt-file", str(path)]
    path.write_text('{"prompt": "A", "max_tokens": 0}\n')
    assert 'line 1: "max_tokens" is 0; it must be a whole number, at least 1' in run_command(*arguments).stderr
    path.write_text('{"prompt": "A", "batch_size": 2}\n')
    said = run_command(*arguments).stderr
    assert """'batch_size' is not a field of a prompt; there are "prompt", "max_tokens", "id\"""" in said


def test_a_misspelled_flag_or_command_is_answered_with_the_nearest() -> None:
    cases = {
        (
            "generate",
            "--promt",
            "x",
        ): "there is no option --promt; did you mean --prompt? See helium-mlx generate --help",
        ("generat",): "there is no command 'generat'; did you mean generate?",
        ("generate", "demo", "--prompt", "x"): "a model is given as --model demo; see",
        ("convert", "demo", "out"): "there is no place for the argument 'demo'; a model is given as --model demo; see",
        ("upload", "out"): "a model is given as --path out; see",
        ("compare", "a", "b"): "a model is given as --reference a; see",
        ("export", "--model", "demo", "--outptu=x"): "there is no option --outptu; did you mean --output?",
        ("generate", "--prompt", "x", "-q"): "-q is --quantize of convert; --quiet leaves out",
        ("generate", "--prompt", "x", "--verbose", "False"): "--quiet leaves them out",
        ("convert", "--hf-path", "demo", "--trust-remote-code"): "no code of a checkpoint is ever run",
    }
    for arguments, said in cases.items():
        result = run_command(*arguments)
        assert result.returncode == 2 and said in result.stderr, result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_flags_of_mlx_lm_are_understood(tmp_path: Path) -> None:
    convert = run_command(
        "convert", "--model", "demo", "--mlx-path", str(tmp_path / "x"), "--quant-predicate", "mixed_4_6"
    )
    assert convert.returncode == 0, convert.stderr
    flags = ["--temperature", "0.5", "--prompt-cache-file", str(tmp_path / "cache.safetensors"), "--seed", "1"]
    generate = run_command("generate", *PROMPT, "-m", "2", *flags)
    assert generate.returncode == 0, generate.stderr
    assert (tmp_path / "cache.safetensors").exists()


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        (["convert", "--hf-path", "demo"], "--mlx-path"),
        (["export", "--model", "demo"], "--output"),
        (["generate", "--model", "demo", "--prompt", "A"], "--prompt-cache"),
    ],
)
def test_what_is_no_text_is_not_written_to_standard_output(tmp_path: Path, command: list[str], flag: str) -> None:
    ended = run_command(*command, flag, "-", cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"error: argument {flag}") and "cannot be written to standard output" in ended.stderr
    assert ended.stderr.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_folder_is_made_where_none_is_named(tmp_path: Path) -> None:
    assert run_command("convert", "--hf-path", "demo", cwd=tmp_path).returncode == 0
    assert (tmp_path / "mlx_model" / "config.json").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_quiet_and_examples_that_parse(command: str) -> None:
    parser = importlib.import_module(f"helium_mlx.{command}").build_parser()
    examples = [shlex.split(line, comments=False) for line in parser.examples]
    assert len(examples) >= 2
    for words in examples:
        end = words.index("<") if "<" in words else len(words)
        assert parser.parse_args([*words[:end], "--quiet"]).quiet is True
    assert all(f"helium-mlx {command} {line}".rstrip() in parser.format_help() for line in parser.examples)


def test_the_prompt_is_shown_before_its_continuation_on_a_terminal_only() -> None:
    words = ["-m", "helium_mlx", "generate", *PROMPT, "-m", "2", "--quiet"]
    echoed = on_terminal(*words)
    assert echoed.startswith(f"\x1b[2m{PROMPT[-1]}\x1b[0m")
    assert PROMPT[-1] not in on_terminal(*words, "--no-echo")
    assert PROMPT[-1] not in run_command(*words[2:]).stdout
    assert on_terminal(*words, env={**os.environ, "NO_COLOR": "1"}).startswith(PROMPT[-1])


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shells_completion_knows_commands_and_flags(shell: str) -> None:
    shtab = pytest.importorskip("shtab")
    script = shtab.complete(cli.build_parser(), shell=shell)
    assert all(command in script for command in COMMANDS)
    assert "--prompt-lookup" in script


def test_a_chat_template_is_remarked_on_and_not_applied(tmp_path: Path) -> None:
    directory = shutil.copytree(DEMO_DIRECTORY, tmp_path / "tuned")
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    arguments = ["generate", "--model", str(directory), "--prompt", "Once", "-m", "3"]
    remarked = run_command(*arguments)
    assert "chat template is not applied" in remarked.stderr
    assert remarked.stdout == run_command("generate", *arguments[3:], "--model", "demo").stdout
    for flag in ("--ignore-chat-template", "--quiet"):
        assert "chat template" not in run_command(*arguments, flag).stderr


def test_equal_samples_are_said_to_be_so() -> None:
    arguments = ["generate", *PROMPT, "-m", "2", "--num-samples", "2"]
    assert "the samples will be equal" in run_command(*arguments).stderr
    assert "equal" not in run_command(*arguments, "--temp", "0.5").stderr


def test_tokens_are_named_by_their_texts() -> None:
    greedy = run_command("generate", *PROMPT, "-m", "1", "--json")
    first = json.loads(greedy.stdout)
    for word in ("the", str(first["token"])):
        banned = run_command("generate", *PROMPT, "-m", "12", "--ban", word, "--json")
        tokens = [json.loads(line)["token"] for line in banned.stdout.splitlines()]
        index = (
            first["token"]
            if word.isdigit()
            else json.loads(run_command("tokenize", "--model", "demo", "--text", word, "--json").stdout)["ids"][1]
        )
        assert index not in tokens and len(tokens) == 12
    ended = run_command("generate", *PROMPT, "-m", "60", "--extra-eos", ".", "--json")
    assert json.loads(ended.stdout.splitlines()[-1])["finish_reason"] == "eos"
    refused = run_command("generate", *PROMPT, "--logit-bias", "a boy=3")
    assert (refused.returncode, refused.stderr.startswith("error: --logit-bias: 'a boy' is ")) == (2, True)


def test_convert_py_without_its_packages_says_what_to_install(tmp_path: Path) -> None:
    script = Path(__file__).parent.parent / "convert.py"
    copied = shutil.copy(script, tmp_path)
    # Isolated, without site-packages: a Python that has nothing installed.
    bare = subprocess.run([sys.executable, "-I", "-S", copied, "--help"], capture_output=True, text=True, check=False)
    assert bare.returncode == 1
    assert re.fullmatch(
        r"error: the package helium_mlx is not installed for .*; in this folder run: pip install \.\n", bare.stderr
    )


def test_the_workflow_keeps_the_page_that_its_benchmark_writes() -> None:
    jobs = yaml.safe_load((EXAMPLES.parent / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]
    steps = jobs["check"]["steps"]
    (script,) = (step["run"] for step in steps if "--report" in step.get("run", ""))
    (kept,) = (step["with"]["path"] for step in steps if "upload-artifact" in step.get("uses", ""))
    made, measured = (shlex.split(line)[1:] for line in script.splitlines())
    converted = importlib.import_module("helium_mlx.convert").build_parser().parse_args(made[1:])
    page = importlib.import_module("helium_mlx.benchmark").build_parser().parse_args(measured[1:])
    assert (page.model, page.against, page.report) == (converted.mlx_path, "mlx-lm", kept)


def test_what_a_message_says_of_arguments_a_command_says_of_flags() -> None:
    flags = flags_of(importlib.import_module("helium_mlx.convert").build_parser())
    for message, said in (
        ("out is there already; replace it with overwrite=True", "out is there already; replace it with --overwrite"),
        ("it was converted with verify=False", "it was converted with --no-verify"),
        ("a/overwrite=True is no directory", "a/overwrite=True is no directory"),
        ("'overwrite=True' is its name", "'overwrite=True' is its name"),
        ("you may quantize it; give quantize=True", "you may quantize it; give --quantize"),
        ("give another with dtype=...", "give another with --dtype"),
    ):
        assert in_flags(HeliumError(message), flags) == said


def test_errors_in_python_name_arguments(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(HeliumError, match=r"choose another name, or replace it with overwrite=True$"):
        convert_function("demo", str(tmp_path / "there"))
    with pytest.raises(HeliumError, match=r"add quantize=True$"):
        convert_function("demo", str(tmp_path / "new"), q_bits=4)
    run = run_command("convert", "--hf-path", "demo", "--mlx-path", str(tmp_path / "there"))
    assert run.stderr.endswith("choose another name, or replace it with --overwrite\n")
    run = run_command("convert", "--hf-path", "demo", "--mlx-path", str(tmp_path / "new"), "--q-bits", "4")
    assert "add --quantize" in run.stderr


def test_a_measured_conversion_says_where_its_table_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from helium_mlx.conversion import conversion
    from helium_mlx.convert import main

    monkeypatch.setattr(conversion, "_measured", lambda report, *_: report)
    flags = ["--hf-path", "demo", "-q", "--no-verify"]
    for more, said in (["--measure"], True), ([], False):
        assert main([*flags, "--mlx-path", str(tmp_path / str(said)), *more]) == 0
        line = f"compared with its source: the table is in {tmp_path / 'True' / 'README.md'}"
        assert (line in capsys.readouterr().err.splitlines()) is said
