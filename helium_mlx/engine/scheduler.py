"""Who runs next."""

from dataclasses import dataclass

from helium_mlx.engine.tasks import EngineRow, OwnRun, ScoreRun
from helium_mlx.generation.decoding_batch import PromptRun

Task = EngineRow | OwnRun | ScoreRun

# Steps in a row that may fail with a row in them before it is ended.
MAX_FAILURES = 3


@dataclass(frozen=True)
class PromptJob:
    """Rows whose prompts are run together."""

    rows: list[EngineRow]
    run: PromptRun

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for it any more."""
        return all(row.is_over for row in self.rows)
