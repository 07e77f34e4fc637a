"""`evaluate`: what it returns and writes, what it goes on with, and what it refuses, each in one line."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from evaluated_checkpoints import DATA
from processes import run_command
from tiny_checkpoints import write_checkpoint

import helium_mlx
from helium_mlx import GenerationError, HeliumError, UsageError
from helium_mlx.evaluation import language_model, running
from helium_mlx.evaluation.published import COLUMNS, ROWS, column_of, published_tasks
from helium_mlx.evaluation.rows import ResultRow, average_row
from helium_mlx.evaluation.tables import model_table, result_table
from helium_mlx.files.hub import DEMO_DIRECTORY

TASKS = ["arc_easy", "mkqa_es"]


def evaluated(**options: object) -> helium_mlx.EvaluationReport:
    asked: dict[str, object] = {"tasks": TASKS, "limit": 3, "data_dir": DATA, "dtype": "float32", **options}
    return helium_mlx.evaluate("demo", **asked)  # pyright: ignore[reportArgumentType]


def test_a_report_says_what_was_found_and_of_what(tmp_path: Path) -> None:
    report = evaluated(output=tmp_path, log_samples=True)
    assert [(row.name, row.language, row.form, row.metric) for row in report.rows] == [
        ("ARC E", "English", "cloze", "acc_norm"),
        ("MKQA", "Spanish", "", "exact_match"),
    ]
    assert [(row.shots, row.samples, row.published) for row in report.rows] == [(5, 3, 80.9), (5, 3, 16.0)]
    assert (report.limit, report.dtype, report.versions["lm_eval"]) == (3, "float32", "0.4.13")
    assert "for testing only" in report.described()[1]
    assert report.hashes["model.safetensors"] and "apple/mkqa/default/train.jsonl" in report.data
    written = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert written["results"]["arc_easy"]["acc_norm,none"] * 100 == pytest.approx(report.rows[0].value)
    assert written["config"]["model_sha256"] == report.hashes
    assert {"versions", "n-shot", "n-samples", "configs", "higher_is_better"} <= written.keys()
    assert "samples" not in written
    samples = (tmp_path / "demo" / "samples_arc_easy.jsonl").read_text().splitlines()
    assert [json.loads(line)["doc_id"] for line in samples] == [0, 1, 2]


def test_known_answers_are_not_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = evaluated(output=tmp_path, num_fewshot=1)
    monkeypatch.setattr("helium_mlx.evaluation.models.score_continuations", None)
    monkeypatch.setattr("helium_mlx.evaluation.models.complete_batch", None)
    assert evaluated(output=tmp_path, num_fewshot=1).rows == first.rows
    with pytest.raises(TypeError):
        evaluated(output=tmp_path, num_fewshot=1, seed=1)
    with pytest.raises(TypeError):
        evaluated(output=tmp_path, num_fewshot=1, dtype="bfloat16")


def test_of_the_many_files_of_tasks_those_that_are_needed_are_read() -> None:
    index = running._manager(["arc_easy", "mkqa_de"]).task_index
    assert {"arc_easy", "mkqa_de"} <= index.keys() and "mmlu_anatomy" not in index
    assert {"mmlu", "mmlu_anatomy"} <= running._manager(["mmlu"]).task_index.keys()


def test_a_template_is_compiled_once_for_all_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    from jinja2 import Environment

    compiled: list[object] = []
    plain = Environment.compile

    def compiling(environment: Environment, source: str) -> object:
        compiled.append(source)
        return plain(environment, source)

    monkeypatch.setattr(Environment, "compile", compiling)
    evaluated(tasks=["arc_easy"], num_fewshot=1)
    assert compiled and len(compiled) == len(set(compiled))


def test_the_published_tasks_have_the_forms_that_were_asked_for() -> None:
    own, letters, cloze, both = map(published_tasks, (None, "letters", "cloze", "both"))
    assert len(own) == len(letters) == len(cloze) == len(ROWS)
    assert set(both) == {*letters, *cloze}
    assert set(own) <= set(both) and "hellaswag" in own and "arc_challenge_letters" in own
    assert all(len(row.values) in (0, len(COLUMNS)) for row in ROWS)


def test_a_model_is_compared_with_its_own_column() -> None:
    names = ["helium-2b-4bit", "mlx-lm:HuggingFaceTB/SmolLM2-1.7B", "mlx-lm:google/gemma-2-2b"]
    names += ["mlx-lm:/helium/meta-llama/Llama-3.2-3B/", "Qwen/Qwen2.5-1.5B", "other"]
    assert [column_of(name, "mlx-lm") for name in names] == [0, 1, 2, 3, 4, None]
    assert column_of("demo-4bit", "helium_mlx") == 0


def test_more_examples_than_there_are_is_said_in_a_line() -> None:
    with pytest.raises(HeliumError, match="num_fewshot may be larger than the examples"):
        evaluated(tasks=["arc_easy"], num_fewshot=50)


def test_a_later_row_of_another_schema_is_said_in_a_line_and_other_line_ends_are_text(tmp_path: Path) -> None:
    folder = tmp_path / "allenai" / "ai2_arc"
    shutil.copytree(DATA / "allenai" / "ai2_arc", folder)
    file = folder / "ARC-Easy" / "test.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[0]["question"] += " a\u2028b\u0085c"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert evaluated(tasks=["arc_easy"], data_dir=tmp_path, limit=2).rows[0].samples == 2
    rows[1] |= {"question": None}
    del rows[1]["choices"]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(HeliumError, match="a row may have another schema"):
        evaluated(tasks=["arc_easy"], data_dir=tmp_path, limit=2)


def row(name: str, value: float, *, form: str = "letters", error: float | None = 2.0) -> ResultRow:
    return ResultRow(name, "English", form, "task", "acc", 5, "1", 10, value, error, 50.0)


def test_the_average_takes_the_better_form_and_needs_every_row() -> None:
    names = [each.name for each in ROWS if each.language == "English"]
    rows = [row(name, 40.0) for name in names]
    assert average_row(rows[1:], 60.7) is None
    average = average_row([*rows, row(names[-1], 51.0, form="cloze")], 60.7)
    assert average is not None and average.value == pytest.approx(41.0)
    assert average.error == pytest.approx(2.0 / 11**0.5)
    assert average.difference == pytest.approx(41.0 - 60.7) and average.is_within is False


def test_the_tables_fit_a_terminal_and_say_what_is_within_two_errors() -> None:
    rows = [row("ARC E", 46.5), row("ARC C", 45.5), row("HS", 50.0, error=None)]
    lines = result_table(rows).plain()
    assert all(len(line) <= 80 for line in lines)
    assert [line.split()[-1] for line in lines[2:]] == ["yes", "no", "-"]
    first, _, *others = model_table({"a/model-of-a-long-name": rows, "c": rows[:1]}).markdown()
    assert "model-of-a-long-name" in first and "46.5 ± 2.0" in others[0] and others[1].endswith(" - |")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tasks": ["arc_eazy"]}, "arc_eazy.*did you mean arc_easy"),
        ({"tasks": []}, "names none"),
        ({"tasks": [5]}, r"tasks is \[5\]"),
        ({"tasks": None}, "tasks is None"),
        ({"form": "shouted"}, "known are letters, cloze, both"),
        ({"form": "letters"}, "chooses among the published tasks"),
        ({"seed": -1}, "seed is -1"),
        ({"limit": 0}, "limit is 0"),
        ({"num_fewshot": -1}, "num_fewshot is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"data_dir": "nowhere"}, "data_dir is 'nowhere', which is no directory"),
        ({"data_dir": ""}, "data_dir is '', which is no directory"),
        ({"output": ""}, "output is ''; expected a folder"),
        ({"output": __file__}, "output is .*, but .*test_running.py is no folder; name another"),
        ({"output": f"{__file__}/results"}, "output is .*results', but .*test_running.py is no folder"),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        evaluated(**options)


def test_a_folder_that_may_not_be_written_to_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Root may write anywhere.
    monkeypatch.setattr("helium_mlx.evaluation.output.os.access", lambda place, mode: Path(place) != tmp_path)
    for output in (tmp_path, tmp_path / "new" / "results"):
        with pytest.raises(
            UsageError, match=f"output is .*, but {tmp_path} may not be written to; name another folder"
        ):
            evaluated(output=output)
    assert not list(tmp_path.iterdir())


def test_answers_of_another_program_stop_the_evaluation_and_are_left_alone(asked: list[str], tmp_path: Path) -> None:
    foreign = '{"question": "whose?"}\n{"torn'
    (tmp_path / "answers.jsonl").write_text(foreign)
    with pytest.raises(HeliumError, match=r"no answers that this program kept; name another output"):
        evaluated(output=tmp_path)
    (tmp_path / "answers.jsonl").unlink()
    (tmp_path / "demo").write_text("in the place of the results")
    with pytest.raises(HeliumError, match=r"demo is no folder, and results go there; move it away"):
        evaluated(output=tmp_path)
    assert not asked and sorted(path.name for path in tmp_path.iterdir()) == ["demo"]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the models that questions were put to; none is answered."""
    found: list[str] = []

    def ask(lm: language_model.HeliumLM, *arguments: object, **options: object) -> None:
        found.append(lm.model.name)
        raise GenerationError("nothing is asked here")

    monkeypatch.setattr(running, "ask", ask)
    return found


def other_models(folder: Path) -> dict[str, str]:
    """Make models that cannot be evaluated; return the names, each with what is said of it."""
    empty, no_tokenizer, unknown = folder / "empty", folder / "no-tokenizer", folder / "unknown"
    empty.mkdir()
    write_checkpoint(no_tokenizer)
    shutil.copytree(DEMO_DIRECTORY, unknown)
    config = json.loads((unknown / "config.json").read_text())
    (unknown / "config.json").write_text(json.dumps(config | {"model_type": "unheard-of"}))
    return {
        "nowhere/at/all": "no such directory, and not a Hub repository",
        str(empty): "config.json",
        str(no_tokenizer): "tokenizer",
        f"mlx-lm:{unknown}": "mlx-lm cannot open the model",
        f"{DEMO_DIRECTORY}": "against has .*, which is the same model as demo; name each once",
    }


def test_all_models_are_looked_at_before_the_first_is_asked(asked: list[str], tmp_path: Path) -> None:
    options = running.EvaluationOptions(tasks="arc_easy", limit=1, data_dir=DATA, output=tmp_path / "results")
    for name, said in other_models(tmp_path).items():
        with pytest.raises(HeliumError, match=said):
            list(running.evaluate_all(["demo", name], options))
    assert not asked and not (tmp_path / "results").exists()
    shutil.copytree(DEMO_DIRECTORY, tmp_path / "sound")
    with pytest.raises(GenerationError):
        list(running.evaluate_all(["demo", tmp_path / "sound"], options))
    assert asked == ["demo"]


def test_models_of_one_name_have_columns_and_results_of_their_own(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        shutil.copytree(DEMO_DIRECTORY, tmp_path / folder / "model")
    names = [tmp_path / "a" / "model", tmp_path / "b" / "model"]
    options = running.EvaluationOptions(
        tasks="arc_easy", num_fewshot=0, limit=1, data_dir=DATA, output=tmp_path / "results"
    )
    assert [report.label for report in running.evaluate_all(names, options)] == ["a/model", "b/model"]
    assert len(list((tmp_path / "results").glob("*/results.json"))) == 2


def test_a_split_that_is_missing_is_named(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(DATA / "allenai" / "ai2_arc", tmp_path / "allenai" / "ai2_arc"))
    (copy / "ARC-Easy" / "train.jsonl").unlink()
    said = r"ai2_arc/ARC-Easy/train\.jsonl is not there, only test, validation are, .*bring it"
    with pytest.raises(HeliumError, match=said):
        evaluated(tasks=["arc_easy"], data_dir=tmp_path)


def test_a_task_for_assistants_is_refused() -> None:
    with pytest.raises(HeliumError, match="arc_challenge_chat needs a chat template"):
        evaluated(tasks=["arc_challenge_chat"])


def test_data_that_is_not_there_is_named_with_how_to_bring_it(tmp_path: Path) -> None:
    with pytest.raises(
        HeliumError, match=r"allenai/ai2_arc is not there.*hf download --repo-type dataset allenai/ai2_arc"
    ):
        evaluated(data_dir=tmp_path)


def test_without_a_network_the_missing_data_set_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    def unreachable(*arguments: object, **options: object) -> None:
        raise ConnectionError("Couldn't reach the Hugging Face Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(HeliumError, match=r"allenai/ai2_arc \(ARC-Easy\) cannot be fetched .*--data-dir DATA"):
        evaluated(data_dir=None)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ('{"text": "of another schema"}\n', "arc_easy cannot read its data, which has another schema"),
        ("no JSON\n", "line 1 is not a JSON object"),
        ("", "has no rows"),
    ],
)
def test_data_of_another_schema_is_one_line(tmp_path: Path, rows: str, said: str) -> None:
    copy = Path(shutil.copytree(DATA, tmp_path / "data"))
    for split in ("train", "validation", "test"):
        (copy / "allenai" / "ai2_arc" / "ARC-Easy" / f"{split}.jsonl").write_text(rows)
    with pytest.raises(HeliumError, match=said):
        evaluated(data_dir=copy)


def test_a_head_for_classification_is_refused(tmp_path: Path) -> None:
    from helium_mlx import HeliumConfig, HeliumForSequenceClassification

    config = HeliumConfig(vocab_size=2048, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
                          num_attention_heads=2, num_key_value_heads=2, head_dim=32)  # fmt: skip
    HeliumForSequenceClassification(config).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO_DIRECTORY / name, tmp_path)
    with pytest.raises(HeliumError, match="without the head of a language model"):
        language_model.HeliumLM(str(tmp_path))


def test_an_answer_longer_than_the_context_is_one_line(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "short", vocab_size=2048, max_position_embeddings=4)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO_DIRECTORY / name, directory)
    with pytest.raises(HeliumError, match=r"a continuation of .* tokens; at most 4 fit into the context"):
        helium_mlx.evaluate(directory, tasks="hellaswag", limit=1, data_dir=DATA)
    with pytest.raises(HeliumError, match="max_gen_toks is 50; it must be less than the context of 4 tokens"):
        helium_mlx.evaluate(directory, tasks="mkqa_de", limit=1, data_dir=DATA)


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "find_spec", lambda name: None)
    with pytest.raises(
        HeliumError, match=r"evaluate needs lm-eval; get it with: pip install lm-eval sacrebleu datasets"
    ):
        evaluated()


def test_the_command_prints_the_table_and_nothing_else(tmp_path: Path) -> None:
    copy = shutil.copytree(DEMO_DIRECTORY, tmp_path / "demo")
    result = run_command(
        "evaluate", "--model", "demo", "--tasks", *TASKS, "--limit", "2", "--num-fewshot", "0", "--data-dir", str(DATA),
        "--plot", str(tmp_path / "plot.svg"), "--against", str(copy),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "demo (helium_mlx, bfloat16)"
    assert f"| {tmp_path.name}/demo" in result.stdout
    assert [line for line in lines if line.startswith(("ARC E, cloze", "es MKQA"))]
    assert "bootstrapping" not in result.stdout
    assert {line.split(":")[0] for line in result.stderr.splitlines()} <= {"Scoring", "Generating"}
    assert (tmp_path / "plot.svg").read_text().startswith("<?xml")


def test_the_command_prints_what_lm_eval_would_write() -> None:
    asked = ["--model", "demo", "--tasks", "arc_easy", "mkqa_de", "--limit", "2", "--data-dir", str(DATA)]
    result = run_command("evaluate", *asked, "--num-fewshot", "0", "--json", "--quiet")
    assert result.returncode == 0 and result.stderr == ""
    assert "acc_norm_stderr,none" in json.loads(result.stdout)["results"]["arc_easy"]


def test_a_card_has_the_table_and_without_a_limit_the_figures_for_the_hub(tmp_path: Path) -> None:
    import yaml

    from helium_mlx.model_card.evaluated import update_card

    directory = tmp_path / "demo-4bit"
    helium_mlx.convert("demo", str(directory), quantize=True)
    report = replace(helium_mlx.evaluate(directory, tasks="openbookqa", num_fewshot=0, data_dir=DATA), is_local=False)
    card = ""
    for _ in range(2):
        # A second time it takes the first one's place.
        update_card(directory, report)
        card = (directory / "README.md").read_text()
        assert card.count("## Evaluation") == 1 and "| OBQA, cloze |" in card
        (index,) = yaml.safe_load(card.split("---\n")[1])["model-index"]
        (result,) = index["results"]
        assert index["name"] == "demo-4bit" and result["dataset"]["type"] == "allenai/openbookqa"
        assert result["metrics"][0]["value"] == round(report.rows[0].value, 2)
    record = json.loads((directory / "conversion.json").read_text())
    assert record["evaluation"]["rows"][0]["task"] == "openbookqa"
    assert str(tmp_path) not in json.dumps(record) + card
    update_card(directory, replace(report, limit=2))
    card = (directory / "README.md").read_text()
    assert "for testing only" in card and "model-index" not in card
    update_card(directory, report)
    # What local copies hold is not known to be what the Hub has.
    update_card(directory, replace(report, is_local=True))
    card = (directory / "README.md").read_text()
    assert "| OBQA, cloze |" in card and "local copies of the data sets" in card and "model-index" not in card


def test_a_card_that_cannot_take_the_table_stops_before_work(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from helium_mlx.evaluate import main

    directory = tmp_path / "converted"
    helium_mlx.convert("demo", str(directory))
    arguments = ["--model", str(directory), "--tasks", "arc_easy", "--data-dir", str(DATA), "--update-card"]
    card, record = directory / "README.md", directory / "conversion.json"
    with monkeypatch.context() as patched:
        patched.setattr("os.access", lambda place, mode: Path(place) != tmp_path)
        assert main(arguments) == 1
        assert f"{tmp_path} may not be written to" in capsys.readouterr().err
    card.write_text("# No metadata\n")
    files = json.loads(record.read_text())
    files["files"]["README.md"] = hashlib.sha256(card.read_bytes()).hexdigest()
    record.write_text(json.dumps(files))
    assert main(arguments) == 1
    assert "README.md has no metadata between two lines of ---" in capsys.readouterr().err
    assert not asked


def test_what_was_found_is_drawn_and_written_though_a_later_model_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from helium_mlx.evaluate import main

    directory, other, plot = tmp_path / "converted", tmp_path / "other", tmp_path / "plot.svg"
    helium_mlx.convert("demo", str(directory))
    shutil.copytree(DEMO_DIRECTORY, other)

    ask = running.ask

    def failing(
        lm: language_model.HeliumLM, loaded: Mapping[str, object], *, limit: int | None, seed: int, log_samples: bool
    ) -> object:
        if lm.model.name == str(other):
            raise GenerationError("it ends here")
        return ask(lm, loaded, limit=limit, seed=seed, log_samples=log_samples)

    monkeypatch.setattr(running, "ask", failing)
    arguments = ["--model", str(directory), "--tasks", "arc_easy", "--data-dir", str(DATA), "--limit", "1"]
    arguments += ["--num-fewshot", "0", "--update-card", "--plot", str(plot), "--against", str(other)]
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert "it ends here" in said and "metadata no figures: a limit is for testing" in said
    assert plot.is_file() and "| ARC E, cloze |" in (directory / "README.md").read_text()
