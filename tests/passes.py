"""Counts the forward passes of a model, whichever way they go."""

import mlx.core as mx
import pytest

from helium_mlx.model.helium import HeliumForCausalLM


class Passes:
    """The rows and columns of each forward pass: those of `HeliumModel.run`, and single tokens, of `step`."""

    def __init__(self, model: HeliumForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shapes: list[tuple[int, int]] = []
        decoder = type(model.model)
        for name in ("run", "step"):
            monkeypatch.setattr(decoder, name, self._counting(getattr(decoder, name)))

    def _counting(self, original: object) -> object:
        def counting(module: object, h: mx.array, *rest: object, **options: object) -> object:
            self.shapes.append((h.shape[0], h.shape[1] if h.ndim == 3 else 1))
            return original(module, h, *rest, **options)  # pyright: ignore[reportCallIssue]

        return counting

    @property
    def lengths(self) -> list[int]:
        """The columns alone."""
        return [columns for _, columns in self.shapes]


def rows_and_columns(ids: mx.array) -> tuple[int, int]:
    """Return the rows of ids and the tokens of each; one for those of a step, (B,)."""
    return ids.shape[0], ids.shape[1] if ids.ndim == 2 else 1
