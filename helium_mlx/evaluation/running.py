"""`evaluate`: one or more models on tasks of lm-eval, whose answers are kept while they come.

lm-eval makes the prompts, and of the answers the figures; this package's class of models answers (`language_model.py`).
What is asked depends on the tasks, the shots, the limit and the seed alone, so that every model is asked the same.
"""

import gc
import logging
import os
import random
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import mlx.core as mx

from helium_mlx.checkpoint.config import DTYPES
from helium_mlx.comparison.sides import HeliumSide, MlxLmSide
from helium_mlx.errors import HeliumError, UsageError, did_you_mean, one_line, shown
from helium_mlx.evaluation.answers import Answers
from helium_mlx.evaluation.data import DataSource, data_from
from helium_mlx.evaluation.labels import folders_of, full_names, labels_of
from helium_mlx.evaluation.models import load_opened, open_checked, require_dtype
from helium_mlx.evaluation.output import ANSWERS_FILE, plain, require_folder, require_results, write_results
from helium_mlx.evaluation.published import FOLDERS, FORMS, SHOTS, column_of, published_tasks
from helium_mlx.evaluation.report import EvaluationReport
from helium_mlx.evaluation.rows import result_rows
from helium_mlx.option_values import require_whole
from helium_mlx.process import require_not_forked
from helium_mlx.version import __version__

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

    from helium_mlx.evaluation.language_model import HeliumLM

PUBLISHED = "published"
TASKS_DIRECTORY = Path(__file__).parent / "tasks"

# lm-eval's own.
SEED = 1234

# Draws of the bootstrap; of BLEU lm-eval takes a hundred.
_DRAWS = 100_000

# More than the tasks of any group have.
_TEMPLATES = 1024

# The name of a task or a group in its file.
_NAMED = re.compile(r"""^["']?(?:task|group)["']?: *["']?([\w.-]+)""", re.MULTILINE)

# Parts of the names of tasks that put a question to an assistant.
_CHAT = ("chat", "instruct")


@dataclass(frozen=True)
class EvaluationOptions:
    """What is asked, and how; see `evaluate`. Raises UsageError for a value that nothing could be asked with."""

    tasks: str | Sequence[str] = PUBLISHED
    form: str | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    batch_size: int = 16
    output: str | Path | None = None
    data_dir: str | Path | None = None
    dtype: str | None = None
    revision: str | None = None
    subfolder: str | None = None
    seed: int = SEED
    log_samples: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.names, Sequence) or not all(isinstance(name, str) and name for name in self.names):
            raise UsageError(f"tasks is {shown(self.tasks)}; give published, or names of lm-eval's tasks")
        if self.form is not None and self.form not in (*FORMS, "both"):
            raise UsageError(f"form is {shown(self.form)}; known are {', '.join(FORMS)}, both")
        if self.form is not None and PUBLISHED not in self.names:
            raise UsageError(f"form is {shown(self.form)}, which chooses among the published tasks; leave it out")
        if self.data_dir is not None and (self.data_dir == "" or not Path(self.data_dir).is_dir()):
            raise UsageError(f"data_dir is {str(self.data_dir)!r}, which is no directory")
        if self.output is not None:
            require_folder(self.output)
        require_dtype(self.dtype, DTYPES)
        checked: dict[str, object] = {
            "batch_size": require_whole("batch_size", self.batch_size, 1, error=UsageError),
            "seed": require_whole("seed", self.seed, 0, 2**32 - 1, allowed="from 0 to 2^32 - 1", error=UsageError),
        }
        if self.limit is not None:
            checked["limit"] = require_whole("limit", self.limit, 1, error=UsageError)
        if self.num_fewshot is not None:
            checked["num_fewshot"] = require_whole("num_fewshot", self.num_fewshot, 0, error=UsageError)
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def names(self) -> Sequence[str]:
        """The names of the tasks."""
        return [self.tasks] if isinstance(self.tasks, str) else self.tasks


def evaluate(
    model: str | Path,
    *,
    tasks: str | Sequence[str] = PUBLISHED,
    form: str | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 16,
    output: str | Path | None = None,
    data_dir: str | Path | None = None,
    dtype: str | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
    seed: int = SEED,
    log_samples: bool = False,
) -> EvaluationReport:
    """Ask a model, as `compare` takes one, the questions of tasks: "published", those of Helium's page, or lm-eval's.

    `form` is how questions with choices are asked: "letters", "cloze", "both", or None for each row's own. `limit` is
    the most questions of a task. `num_fewshot` is how many examples stand before a question: 5 for the published tasks,
    and for others the task's own. `batch_size` is how many requests run together. `output` is a directory for the
    answers, which are not asked for again, and the results. `data_dir` has local copies of the data sets. `dtype` is
    what to compute in. With `log_samples` every question is kept in the result.

    Raises HeliumError, one line, for what cannot be opened, fetched or asked.
    """
    options = EvaluationOptions(
        tasks=tasks, form=form, limit=limit, num_fewshot=num_fewshot, batch_size=batch_size, output=output,
        data_dir=data_dir, dtype=dtype, revision=revision, subfolder=subfolder, seed=seed, log_samples=log_samples,
    )  # fmt: skip
    (report,) = evaluate_all([model], options)
    return report


def evaluate_all(models: Sequence[str | Path], options: EvaluationOptions) -> Iterator[EvaluationReport]:
    """Yield the report of each model, one in memory at a time; `revision` and `subfolder` are of the first.

    What can be wrong with a later model, the tasks or the output is found before the first request.
    """
    require_not_forked("evaluate there")
    _require_harness()
    from helium_mlx.evaluation.language_model import HeliumLM

    names = [str(model) for model in models]
    place = (
        f"{f':{options.subfolder}' if options.subfolder else ''}{f'@{options.revision}' if options.revision else ''}"
    )
    labels, folders = labels_of(names, place), folders_of(full_names(names, place))
    source = DataSource(None if options.data_dir is None else Path(options.data_dir))
    output = None if options.output is None else Path(options.output)
    if output is not None:
        require_results(output, folders)
    with quiet_harness():
        sides = _opened(names, options)
        loaded = load_tasks(options.names, options.form, options.num_fewshot, source)
        for side, label, folder in zip(sides, labels, folders, strict=True):
            model = load_opened(side, dtype=options.dtype, batch_size=options.batch_size)
            lm = HeliumLM(model, batch_size=options.batch_size)
            with Answers(None if output is None else output / ANSWERS_FILE) as answers:
                lm.answers, lm.progress_stream = answers, sys.stderr
                lm.versions = {name: task.VERSION for name, task in loaded["tasks"].items()}
                found = ask(lm, loaded, limit=options.limit, seed=options.seed, log_samples=options.log_samples)
            samples = cast("Mapping[str, list[object]]", found.pop("samples", {}))
            harness = plain(found) | {"config": _config(lm, options, source)}
            report = _report(lm, label, harness, options, source)
            if output is not None:
                write_results(output / folder, report.harness, samples)
            # The next model comes into memory when this one has left it.
            del lm, model
            gc.collect()
            mx.clear_cache()
            yield report


def _opened(names: Sequence[str], options: EvaluationOptions) -> "list[HeliumSide | MlxLmSide]":
    """Return all models, opened. Raises UsageError for one that is named twice."""
    opened: list[HeliumSide | MlxLmSide] = []
    known: dict[tuple[str, Path], str] = {}
    for index, name in enumerate(names):
        place = (options.revision, options.subfolder) if index == 0 else (None, None)
        side = open_checked(name, revision=place[0], subfolder=place[1])
        key = type(side).__name__, side.directory.resolve()
        if key in known:
            raise UsageError(f"against has {name}, which is the same model as {known[key]}; name each once")
        known[key] = name
        opened.append(side)
    return opened


def _require_harness() -> None:
    for package in ("lm_eval", "sacrebleu", "datasets"):
        if find_spec(package) is None:
            raise HeliumError(
                f"evaluate needs {package.replace('_', '-')}; get it with: pip install lm-eval sacrebleu datasets"
            )


@contextmanager
def quiet_harness() -> Iterator[None]:
    """Keep lm-eval, and what it uses, from writing between our own lines and from starting processes.

    Its templates, which it compiles anew for every question and every example, 6 ms each, are compiled once meanwhile.
    """
    import datasets
    from datasets.utils import are_progress_bars_disabled
    from lm_eval.utils import env

    os.environ["DISABLE_MULTIPROC"] = "1"
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    were_shown = not are_progress_bars_disabled()
    datasets.disable_progress_bars()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    patched, from_string = cast("Any", env), env.from_string
    patched.from_string = lru_cache(_TEMPLATES)(from_string)
    try:
        yield
    finally:
        patched.from_string = from_string
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if were_shown:
            datasets.enable_progress_bars()


def load_tasks(names: Sequence[str], form: str | None, shots: int | None, source: DataSource) -> dict[str, Any]:
    """Return the tasks of some names as lm-eval takes them, their data read, the shots set."""
    wanted: list[str] = []
    for name in names:
        wanted += published_tasks(form) if name == PUBLISHED else [name]
    wanted = list(dict.fromkeys(wanted))
    if not wanted:
        raise UsageError("tasks names none; give published, or names of lm-eval's tasks")
    manager = _manager(wanted)
    for name in wanted:
        _require_plain(name)
    parts = []
    with data_from(source):
        for name in wanted:
            parts.append(_load(manager, name))
    loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    for part in parts:
        for key, values in loaded.items():
            values |= part.get(key, {})
    published = set(published_tasks("both"))
    of_published = {
        task for part, name in zip(parts, wanted, strict=True) if name in published for task in part["tasks"]
    }
    for name, task in cast("Mapping[str, Task]", loaded["tasks"]).items():
        _require_plain(name, task)
        default = SHOTS if name in of_published else task.get_config("num_fewshot") or 0
        task.set_config(key="num_fewshot", value=default if shots is None else shots)
    return loaded


def _manager(names: Sequence[str]) -> "TaskManager":
    """Return what knows the tasks. Raises UsageError for a name that lm-eval lacks, with the nearest."""
    import lm_eval.tasks
    from lm_eval.tasks import TaskManager

    folder = Path(lm_eval.tasks.__file__).parent
    # To read the tasks in all files takes half a minute, to see which files have a name a second or two.
    likely = [
        folder / each for each in FOLDERS if any(name in text for text in _texts(folder / each) for name in names)
    ]
    quick = TaskManager(include_path=[*likely, TASKS_DIRECTORY], include_defaults=False)
    if all(name in quick.task_index for name in names):
        return quick
    texts = _texts(folder)
    for name in names:
        if name not in quick.task_index and not any(name in text for text in texts):
            raise _unknown(name, [*quick.all_tasks, *(found for text in texts for found in _NAMED.findall(text))])
    manager = TaskManager(include_path=TASKS_DIRECTORY)
    for name in names:
        if name not in manager.task_index:
            raise _unknown(name, manager.all_tasks)
    return manager


def _texts(folder: Path) -> list[str]:
    return [path.read_text(encoding="utf-8", errors="replace") for path in folder.rglob("*yaml")]


def _unknown(name: str, known: Sequence[str]) -> UsageError:
    near = did_you_mean(name, [PUBLISHED, *known])
    return UsageError(f"tasks has {shown(name)}, which lm-eval {version('lm_eval')} does not know{near}")


def _load(manager: "TaskManager", name: str) -> dict[str, Any]:
    from jinja2.exceptions import TemplateError

    try:
        return cast("dict[str, Any]", manager.load([name]))
    except HeliumError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, TemplateError) as error:
        what = one_line(f"{type(error).__name__}: {error}", 160)
        raise HeliumError(
            f"the task {name} cannot read its data, which has another schema or no rows ({what}); compare it with the "
            "data set of that name on the Hub"
        ) from None
    except (ImportError, OSError) as error:
        raise HeliumError(f"the task {name} cannot be loaded ({one_line(str(error), 160)})") from None


def _require_plain(name: str, task: "Task | None" = None) -> None:
    """Raise HeliumError for a task that puts its questions to an assistant, which a model of text alone is not."""
    words = name.lower().split("_")
    is_chat = any(word.startswith(part) for word in words for part in _CHAT)
    if is_chat or (task is not None and task.get_config("gen_prefix")):
        raise HeliumError(
            f"the task {name} needs a chat template, and none is applied here; name a task for base models"
        )


def ask(
    lm: "LM", loaded: Mapping[str, Any], *, limit: int | None, seed: int = SEED, log_samples: bool = False
) -> dict[str, Any]:
    """Return what lm-eval finds of a model, of whatever class, on tasks that `load_tasks` returned."""
    import numpy as np
    from jinja2.exceptions import TemplateError
    from lm_eval.evaluator import evaluate as evaluate_tasks

    for task in loaded["tasks"].values():
        task.set_fewshot_seed(seed=seed)
    # As lm-eval itself sets them.
    random.seed(0)
    np.random.seed(seed)
    try:
        # lm-eval prints what it does, and standard output carries the product only.
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            found = evaluate_tasks(
                lm, cast("Any", loaded), limit=limit, bootstrap_iters=_DRAWS, log_samples=log_samples
            )
    except (AssertionError, KeyError, IndexError, ValueError, TemplateError) as error:
        what = one_line(f"{type(error).__name__}: {error}", 160)
        raise HeliumError(
            f"lm-eval cannot ask the questions ({what}); a row may have another schema than on the Hub, or "
            "num_fewshot may be larger than the examples that there are"
        ) from None
    return cast("dict[str, Any]", found)


def _config(lm: "HeliumLM", options: EvaluationOptions, source: DataSource) -> dict[str, object]:
    return {
        "model": "helium_mlx",
        **lm.get_model_info(),
        "batch_size": options.batch_size,
        "limit": options.limit,
        "bootstrap_iters": _DRAWS,
        "random_seed": 0,
        "numpy_seed": options.seed,
        "fewshot_seed": options.seed,
        "data": dict(source.versions),
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    return {"helium_mlx": __version__, **{name: version(name) for name in ("lm_eval", "mlx")}}


def _report(
    lm: "HeliumLM", label: str, harness: dict[str, Any], options: EvaluationOptions, source: DataSource
) -> EvaluationReport:
    model = lm.model
    return EvaluationReport(
        model=model.name, label=label, program=model.program, dtype=model.dtype,
        rows=result_rows(harness, column_of(model.name, model.program)),
        form=options.form, limit=options.limit, seed=options.seed, hashes=model.hashes,
        data=dict(source.versions), is_local=source.directory is not None, versions=_versions(), harness=harness,
    )  # fmt: skip
