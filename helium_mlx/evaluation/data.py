"""Data sets of tasks: from the Hub through `datasets`, or from local copies in the same schemas.

A local copy of OWNER/NAME lies in `--data-dir`/OWNER/NAME: what the Hub has, as `hf download --repo-type dataset`
brings it, or `CONFIGURATION/SPLIT.jsonl` (the configuration is "default" where a data set has one only). lm-eval loads
what its task files name with `ConfigurableTask.download`, in whose place `data_from` puts its own meanwhile.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from helium_mlx.errors import HeliumError, one_line, some
from helium_mlx.files.text import read_text
from helium_mlx.files.untrusted import FileProblem

if TYPE_CHECKING:
    from datasets import DatasetDict

MAX_FILE_BYTES = 1 << 30

_COMMIT = re.compile(r"@([0-9a-f]{40})/")


@dataclass
class DataSource:
    """Where data comes from, the Hub unless a `directory` is named, and which `versions` of it came."""

    directory: Path | None = None
    versions: dict[str, str] = field(default_factory=dict)
    _loaded: "dict[tuple[str, str | None], DatasetDict]" = field(default_factory=dict)
    _files: dict[Path, tuple[list[dict[str, object]], str]] = field(default_factory=dict)

    def load(self, path: str, name: str | None, options: Mapping[str, object]) -> "DatasetDict":
        """Return the splits of a data set. Raises HeliumError, which says how to bring it."""
        key = (path, name)
        if key not in self._loaded:
            self._loaded[key] = self._fetch(path, name, options) if self.directory is None else self._read(path, name)
        return self._loaded[key]

    def _fetch(self, path: str, name: str | None, options: Mapping[str, object]) -> "DatasetDict":
        import datasets
        from datasets.exceptions import DatasetNotFoundError

        try:
            found = cast("DatasetDict", datasets.load_dataset(path, name, **cast("dict[str, Any]", dict(options))))
        except (OSError, ValueError, RuntimeError, DatasetNotFoundError) as error:
            raise HeliumError(
                f"the data set {_called(path, name)} cannot be fetched ({one_line(str(error), 120)}); connect to the "
                f"Hub, or bring it from elsewhere: {_download(path, Path('DATA', path))}, then --data-dir DATA"
            ) from None
        commits = {
            commit
            for split in found.values()
            for url in (split.info.download_checksums or {})
            for commit in _COMMIT.findall(url)
        }
        self.versions[path] = ", ".join(sorted(commits)) or "not known"
        return _with_splits(
            found, lambda split: f"the split {split} of the data set {_called(path, name)} is not there", ""
        )

    def _read(self, path: str, name: str | None) -> "DatasetDict":
        import datasets

        assert self.directory is not None
        place = self.directory / path
        files = sorted((place / (name or "default")).glob("*.jsonl"))
        # MMLU has its subjects both as configurations and in one, "all", by a column.
        subject = None if files else name
        files = files or sorted((place / "all").glob("*.jsonl"))
        if files:
            splits = {file.stem: datasets.Dataset.from_list(self._rows(file, subject)) for file in files}
            for file in files:
                self.versions[str(file.relative_to(self.directory))] = f"local, SHA-256 {self._files[file][1]}"
            folder = files[0].parent
            return _with_splits(
                cast("dict[Any, Any]", splits), lambda split: f"{folder / split}.jsonl is not there",
                f"; bring it: {_download(path, place)}",
            )  # fmt: skip
        if not place.is_dir():
            raise HeliumError(
                f"{place} is not there, the local copy of the data set {_called(path, name)}; bring it: "
                f"{_download(path, place)}"
            )
        try:
            found = cast("DatasetDict", datasets.load_dataset(str(place), name))
        except (OSError, ValueError, RuntimeError) as error:
            raise HeliumError(
                f"{place}: not a copy of the data set {_called(path, name)} ({one_line(str(error), 200)})"
            ) from None
        self.versions[path] = "local"
        return _with_splits(
            found, lambda split: f"{place}: the split {split} of {_called(path, name)} is not there",
            f"; bring it: {_download(path, place)}",
        )  # fmt: skip

    def _rows(self, file: Path, subject: str | None) -> list[dict[str, object]]:
        if file not in self._files:
            self._files[file] = _read_rows(file)
        rows = [row for row in self._files[file][0] if subject is None or row.get("subject") == subject]
        if not rows:
            raise HeliumError(f"{file}: has no rows{f' of the subject {subject}' if subject else ''}")
        return rows


_source: ContextVar[DataSource] = ContextVar("data source", default=DataSource())  # noqa: B039


def load_data(path: str, name: str | None, **options: object) -> "DatasetDict":
    """Return the splits of a data set from where data comes from at present."""
    return _source.get().load(path, name, options)


@contextmanager
def data_from(source: DataSource) -> Iterator[None]:
    """Have lm-eval's tasks load their data from there meanwhile."""
    from lm_eval.api.task import ConfigurableTask

    patched = cast("Any", ConfigurableTask)
    download = patched.download

    def from_source(task: ConfigurableTask, dataset_kwargs: dict[str, object] | None = None, **kwargs: object) -> None:
        if task.config.custom_dataset is not None:
            download(task, dataset_kwargs, **kwargs)
            return
        options = {name: value for name, value in (dataset_kwargs or {}).items() if name != "trust_remote_code"}
        task.dataset = source.load(cast(str, task.DATASET_PATH), task.DATASET_NAME, options)

    token = _source.set(source)
    patched.download = from_source
    try:
        yield
    finally:
        patched.download = download
        _source.reset(token)


def _with_splits(splits: Mapping[Any, Any], missing: Callable[[str], str], remedy: str) -> "DatasetDict":
    """Return the splits of a data set, of which one that is asked for and not there is an error in a line."""
    import datasets

    class Splits(datasets.DatasetDict):
        def __missing__(self, split: object) -> None:
            raise HeliumError(
                f"{missing(str(split))}, only {some(sorted(map(str, self)))} are, and a task takes its questions or "
                f"examples from it{remedy}"
            )

    return Splits(splits)


def _download(path: str, place: Path) -> str:
    return f"hf download --repo-type dataset {path} --local-dir {place}"


def _called(path: str, name: str | None) -> str:
    return path if name is None else f"{path} ({name})"


def _read_rows(file: Path) -> tuple[list[dict[str, object]], str]:
    """Return the rows of a file, and its SHA-256."""
    try:
        read = read_text(str(file), MAX_FILE_BYTES)
    except FileProblem as problem:
        raise HeliumError(f"{file}: {problem}") from None
    rows: list[dict[str, object]] = []
    # By "\n" alone: JSON may hold the other characters that end a line.
    for number, line in enumerate(read.text.removesuffix("\n").split("\n") if read.text else [], 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise HeliumError(f"{file}: line {number} is not a JSON object")
        rows.append(row)
    return rows, read.sha256
