"""Calibration text: what a model is run over to see what its matrices are given, before they are rounded.

The package has a text in each of Helium's six languages, none of which `compare` evaluates on. A text is cut into
windows with exactly one BOS each; every fourth window is held out: nothing is fitted to it, and the result is measured
on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from helium_mlx.checkpoint.config import HeliumConfig
from helium_mlx.errors import QuantizationError
from helium_mlx.files.text import read_text
from helium_mlx.files.untrusted import FileProblem
from helium_mlx.table import Table, short_repr
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

TEXTS_DIRECTORY = Path(__file__).parent / "calibration_texts"

# Where one document ends and the next begins; paragraphs have one empty line between them.
DOCUMENT_BREAK = "\n\n\n"
WINDOW_TOKENS = 256
HELD_OUT = 4

# One window to fit to and one to measure on: what follows would be meaningless with less.
MIN_WINDOWS = 2
MAX_TEXT_BYTES = 64_000_000


@dataclass(frozen=True)
class Windows:
    """Token ids, int32 (1, L) each and beginning with BOS: those to fit to, and those held out."""

    fitted: list[mx.array]
    held_out: list[mx.array]

    @property
    def fitted_tokens(self) -> int:
        """How many tokens there are to fit to."""
        return sum(ids.shape[1] for ids in self.fitted)

    @property
    def held_out_tokens(self) -> int:
        """How many tokens are held out."""
        return sum(ids.shape[1] for ids in self.held_out)


@dataclass(frozen=True)
class CalibrationReport:
    """What a conversion's run over calibration text chose, brought and cost.

    `rounding` is what was kept. `plain_kl` and `kl` are mean KL divergences from the source in nats a token, on the
    held-out tokens, with plain rounding and with the calibrated one, kept or not; None where rounding is plain by
    choice. `plain_modules` are those of which some rows at least are rounded plainly since that errs less.
    `sensitivities` are KL divergences with one module alone rounded to 3 bits, where bits were chosen by them. Seconds
    are wall time; `peak_memory` is MLX's, in bytes.
    """

    text: str
    fitted_tokens: int
    held_out_tokens: int
    rounding: str
    plain_kl: float | None
    kl: float | None
    plain_modules: list[str]
    sensitivities: dict[str, float]
    allocation_seconds: float
    rounding_seconds: float
    seconds_per_billion_weights: float
    peak_memory: int

    def __repr__(self) -> str:
        return short_repr(self, text=self.text, rounding=self.rounding, kl=self.kl, plain_kl=self.plain_kl)

    def _repr_html_(self) -> str:
        columns = [
            ("fitted text", "tokens"), ("held out", "tokens"), ("KL", "nats"), ("plain KL", "nats"), ("time", "s"),
        ]  # fmt: skip
        row = [
            self.rounding,
            f"{self.fitted_tokens:,}",
            f"{self.held_out_tokens:,}",
            "-" if self.kl is None else f"{self.kl:.5f}",
            "-" if self.plain_kl is None else f"{self.plain_kl:.5f}",
            f"{self.allocation_seconds + self.rounding_seconds:.1f}",
        ]
        return Table("rounding", columns, [row]).html(f"calibrated on {self.text}")

    @property
    def is_plain(self) -> bool:
        """Whether all weights are as `mx.quantize` rounds them."""
        return self.rounding == "nearest"

    @property
    def was_dropped(self) -> bool:
        """Whether plain rounding was kept since the calibrated one was no better."""
        return self.is_plain and self.kl is not None

    @property
    def summary(self) -> str:
        """What it brought, as one line for people."""
        cost = f"{self.seconds_per_billion_weights:.0f} s per billion weights"
        if self.kl is None or self.plain_kl is None:
            return f"bits chosen on {self.held_out_tokens} tokens, {cost}"
        kept = "; plain rounding was kept" if self.was_dropped else ""
        return (
            f"KL divergence on {self.held_out_tokens} held-out tokens: {self.kl:.5f}, with plain rounding "
            f"{self.plain_kl:.5f}{kept}; {cost}"
        )


def calibration_windows(tokenizer: HeliumTokenizer, config: HeliumConfig, text: str | Path | None = None) -> Windows:
    """Cut a text file, or those of the package, into windows for a model.

    Raises QuantizationError for a file that cannot be read, that is not text, or too short to calibrate with.
    """
    files = sorted(TEXTS_DIRECTORY.glob("*.txt")) if text is None else [Path(text)]
    documents = [document for path in files for document in _text_of(path).split(DOCUMENT_BREAK) if document.strip()]
    length = min(WINDOW_TOKENS, config.max_position_embeddings)
    encoded = [tokenizer.encode(document.strip()) for document in documents]
    if any(tokenizer.bos_token_id in ids[1:] for ids in encoded):
        raise QuantizationError(
            f"calibration text {text or TEXTS_DIRECTORY} spells out the token that begins a text, id "
            f"{tokenizer.bos_token_id}; take it out"
        )
    windows = [window for ids in encoded for window in _windows(ids, length)]
    if len(windows) < MIN_WINDOWS:
        raise QuantizationError(
            f"{text or TEXTS_DIRECTORY} makes {len(windows)} windows of up to {length} tokens; calibration needs "
            f"{MIN_WINDOWS}, and does well with a hundred: give a longer text"
        )
    held_out = [window for index, window in enumerate(windows) if index % HELD_OUT == min(HELD_OUT, len(windows)) - 1]
    kept = [window for index, window in enumerate(windows) if index % HELD_OUT != min(HELD_OUT, len(windows)) - 1]
    return Windows(kept, held_out)


def _windows(ids: Sequence[int], length: int) -> list[mx.array]:
    """Return a document's ids, of which the first is BOS, as windows that each begin with it."""
    bos, tokens = ids[0], ids[1:]
    step = length - 1
    return [mx.array([[bos, *tokens[first : first + step]]]) for first in range(0, len(tokens), step)]


def _text_of(path: Path) -> str:
    try:
        return read_text(path, MAX_TEXT_BYTES).text
    except FileProblem as problem:
        raise QuantizationError(f"calibration text {path}: {problem}") from None
