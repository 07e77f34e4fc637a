"""What an evaluation found of one model, and of what it was found."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from helium_mlx.evaluation.rows import ResultRow
from helium_mlx.evaluation.tables import result_table
from helium_mlx.table import short_repr


@dataclass(frozen=True)
class EvaluationReport:
    """What was found of one model, and of what it was found.

    `label` is what tells it from the other models. `hashes` are of the checkpoint's files, `data` the commit or hash of
    each data set; `is_local` says that those were local copies. `limit` questions of each task were asked, all of them
    where it is None: a result with a limit is for testing only. `harness` is the whole result in lm-eval's own form.
    """

    model: str
    label: str
    program: str
    dtype: str
    rows: tuple[ResultRow, ...]
    form: str | None
    limit: int | None
    seed: int
    hashes: Mapping[str, str]
    data: Mapping[str, str]
    is_local: bool
    versions: Mapping[str, str]
    harness: Mapping[str, object] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        return short_repr(self, model=self.model, rows=len(self.rows), limit=self.limit)

    def _repr_html_(self) -> str:
        return result_table(self.rows).html("; ".join(self.described()))

    def described(self) -> list[str]:
        """Return what was evaluated, and on how much."""
        much = "all questions" if self.limit is None else f"at most {self.limit} questions a task, for testing only"
        named = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return [f"{self.model} ({self.program}, {self.dtype})", f"{much}; seed {self.seed}; {named}"]
