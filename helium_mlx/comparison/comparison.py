"""`compare`: how far a candidate checkpoint is from its reference, on text: KL divergence, top-1, perplexity.

The text is cut into windows that begin with one BOS each. The reference runs first; its logits go to a temporary file
(`LogitsFile`), and its model out of memory before the candidate's comes in. Log-probabilities are in float32.
Both models compute in one dtype, the wider of their own, so that the weights are all that differs.

Where the two tokenizers give different ids, distributions over tokens cannot be compared: what remains are bits per
byte and the perplexities of a byte. Batches change nothing but the last digits: each row's padding comes after it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import mlx.core as mx

from helium_mlx.checkpoint.config import DTYPES
from helium_mlx.comparison.figures import LanguageFigures, Measured, figures
from helium_mlx.comparison.passes import CandidateRun, LogitsFile, ScoringOptions, run_candidate, run_reference
from helium_mlx.comparison.report import ComparisonReport
from helium_mlx.comparison.sides import (
    MLX_LM_PREFIX,
    HeliumSide,
    Hybrid,
    Side,
    layer_groups,
    open_side,
    require_fits,
    require_same_shape,
)
from helium_mlx.comparison.text import STORIES, Document, EncodedText, bundled_documents, documents_of, encoded_text
from helium_mlx.errors import ComparisonError, UsageError
from helium_mlx.option_values import OnProgress, require_whole
from helium_mlx.process import require_not_forked

__all__ = ["ComparisonReport", "LanguageFigures", "compare", "compare_all"]
DEFAULT_WINDOW = 512


def compare(
    reference: str | Path,
    candidate: str | Path,
    *,
    texts: Mapping[str, str | Sequence[str]] | None = None,
    languages: Sequence[str] | None = None,
    window: int | None = None,
    batch_size: int = 4,
    dtype: str | None = None,
    reference_revision: str | None = None,
    candidate_revision: str | None = None,
    reference_subfolder: str | None = None,
    candidate_subfolder: str | None = None,
    by_layers: bool = False,
    on_progress: OnProgress | None = None,
) -> ComparisonReport:
    """Measure how far `candidate` is from `reference`: each a directory, a Hub repository, "demo", or "mlx-lm:NAME".

    `texts` maps languages, or any other names, to a text or several; without it the package's own is used, of
    `languages` or of all, and of it the stories alone where `reference` is the demo, which knows nothing else. `window`
    is the most tokens that are run at once, BOS included: 512, or the models' context. `batch_size` windows are run
    together. `dtype` (bfloat16, float16, float32) is what both compute in; None is the wider of their own (float32 for
    quantized weights on the CPU). `by_layers` fills the report's `layers`, for which the reference runs once more for
    each group (see `sides.Hybrid`). `on_progress(done, total)` counts tokens.

    Raises HeliumError, one line, for what cannot be opened or compared, and for logits that are not finite.
    """
    if texts is not None and languages is not None:
        raise UsageError("languages are those of the package's own text; leave them out with texts of your own")
    documents = bundled_documents(languages, reference=reference) if texts is None else documents_of(texts)
    (report,) = compare_all(
        reference, [candidate], documents, window=window, batch_size=batch_size, dtype=dtype,
        reference_revision=reference_revision, candidate_revision=candidate_revision,
        reference_subfolder=reference_subfolder, candidate_subfolder=candidate_subfolder, by_layers=by_layers,
        on_progress=on_progress,
    )  # fmt: skip
    return report


def compare_all(
    reference: str | Path,
    candidates: Sequence[str | Path],
    documents: Sequence[Document],
    *,
    window: int | None = None,
    batch_size: int = 4,
    dtype: str | None = None,
    reference_revision: str | None = None,
    candidate_revision: str | None = None,
    reference_subfolder: str | None = None,
    candidate_subfolder: str | None = None,
    by_layers: bool = False,
    on_progress: OnProgress | None = None,
) -> Iterator[ComparisonReport]:
    """Yield the report of each of `candidates`, as `compare` returns it; the reference runs once for all of them."""
    require_not_forked("compare there")
    batch_size = require_whole("batch_size", batch_size, 1, error=UsageError)
    reference_side = open_side(str(reference), revision=reference_revision, subfolder=reference_subfolder)
    candidate_sides = [
        open_side(str(candidate), revision=candidate_revision, subfolder=candidate_subfolder)
        for candidate in candidates
    ]
    sides = [reference_side, *candidate_sides]
    size = _window_size(window, sides)
    text, *texts = [_encoded(documents, side, size) for side in sides]
    alike = [text == candidate_text for candidate_text in texts]
    groups = [
        _groups(reference_side, side, is_alike) if by_layers else {}
        for side, is_alike in zip(candidate_sides, alike, strict=True)
    ]
    runs = 1 + sum(map(len, groups))
    on_scored = _counting(runs * text.positions + sum(each.positions for each in texts), on_progress)
    how = ScoringOptions(_common_dtype(dtype, sides), batch_size, on_scored)
    for side in sides:
        require_fits(side, how.dtype)
    with LogitsFile(text.positions) as cached:
        losses = run_reference(reference_side, text, how, cached if any(alike) else None)
        for side, candidate_text, is_alike, parts in zip(candidate_sides, texts, alike, groups, strict=True):
            run = run_candidate(side, candidate_text, how, cached if is_alike else None)
            by_document = _measured(documents, text, losses, candidate_text, run)
            layers = {name: run_candidate(part, text, how, cached).mean_kl for name, part in parts.items()}
            yield ComparisonReport(
                **asdict(_figures(documents, by_document)),
                languages=_by_language(documents, by_document),
                reference=reference_side.described(how.dtype),
                candidate=side.described(how.dtype),
                window=size,
                windows=len(text.windows),
                texts=tuple(document.own for document in documents if document.own is not None),
                package_text="stories" if _is_stories(documents) else "text",
                perplexity_unit="token" if run.divergences else "byte",
                layers=layers,
                notes=tuple(_notes(documents, text, candidate_text, run)),
            )


def _window_size(window: int | None, sides: Sequence[Side]) -> int:
    contexts = [(side.context, side.name) for side in sides if side.context is not None]
    if window is None:
        return min([DEFAULT_WINDOW, *(context for context, _ in contexts)])
    window = require_whole("window", window, 1, error=UsageError)
    for context, name in contexts:
        if window > context:
            raise UsageError(f"window is {window}; expected at most {context}, the context of {name}")
    return window


def _common_dtype(dtype: str | None, sides: Sequence[Side]) -> mx.Dtype:
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"dtype is {dtype!r}; known are {', '.join(DTYPES)}")
    dtypes = {side.dtype for side in sides} if dtype is None else {getattr(mx, dtype)}
    return dtypes.pop() if len(dtypes) == 1 else mx.float32


def _encoded(documents: Sequence[Document], side: Side, size: int) -> EncodedText:
    ids_of_documents = [side.encode(document.text) for document in documents]
    for document, ids in zip(documents, ids_of_documents, strict=True):
        if not ids:
            raise ComparisonError(f"{document.language}: {side.name}'s tokenizer gives no tokens for the text")
        if side.bos in ids:
            raise ComparisonError(
                f"{document.language}: the text spells out the token that begins {side.name}'s windows, id {side.bos}; "
                "take it out"
            )
        largest = max(side.bos, *ids)
        if side.vocab_size is not None and largest >= side.vocab_size:
            raise ComparisonError(
                f"{side.name}: its tokenizer gives the id {largest}, and the model has {side.vocab_size} rows; fetch "
                "its tokenizer again"
            )
    return encoded_text(ids_of_documents, first=side.bos, size=size)


def _counting(total: int, on_progress: OnProgress | None) -> Callable[[int], None]:
    done = 0

    def count(positions: int) -> None:
        nonlocal done
        done += positions
        if on_progress is not None:
            on_progress(done, total)

    return count


def _measured(
    documents: Sequence[Document],
    text: EncodedText,
    losses: Sequence[float],
    candidate_text: EncodedText,
    run: CandidateRun,
) -> dict[int, list[Measured]]:
    """Return what was measured of each document: window by window, or as a whole where windows do not correspond."""
    measured: dict[int, list[Measured]] = defaultdict(list)
    if run.divergences:
        columns = map(text.by_window, (losses, run.losses, run.divergences, run.agreements))
        for window, *values in zip(text.windows, *columns, strict=True):
            measured[window.document].append(Measured(window.length, *values))
        return measured
    # Windows of different tokenizers do not line up.
    reference, candidate = _by_document(text, losses), _by_document(candidate_text, run.losses)
    return {
        index: [Measured(document.bytes, reference[index], candidate[index], [], [])]
        for index, document in enumerate(documents)
    }


def _by_document(text: EncodedText, losses: Sequence[float]) -> dict[int, list[float]]:
    values: dict[int, list[float]] = defaultdict(list)
    for window, part in zip(text.windows, text.by_window(losses), strict=True):
        values[window.document] += part
    return values


def _by_language(
    documents: Sequence[Document], measured: Mapping[int, Sequence[Measured]]
) -> dict[str, LanguageFigures]:
    return {
        language: _figures(
            documents, {i: measured[i] for i, document in enumerate(documents) if document.language == language}
        )
        for language in dict.fromkeys(document.language for document in documents)
    }


def _figures(documents: Sequence[Document], measured: Mapping[int, Sequence[Measured]]) -> LanguageFigures:
    return figures([each for index in measured for each in measured[index]], sum(documents[i].bytes for i in measured))


def _groups(reference: Side, candidate: Side, is_alike: bool) -> dict[str, Hybrid]:
    """Return the reference with each group of its modules taken from the candidate."""
    if not (isinstance(reference, HeliumSide) and isinstance(candidate, HeliumSide)):
        raise ComparisonError(f"KL by group of layers needs two checkpoints of this package, without {MLX_LM_PREFIX}")
    require_same_shape(reference.checkpoint, candidate.checkpoint)
    if not is_alike:
        raise ComparisonError("KL by group of layers needs one tokenizer, and these two give different ids")
    return {name: Hybrid(reference, candidate, taken) for name, taken in layer_groups(reference.checkpoint).items()}


def _is_stories(documents: Sequence[Document]) -> bool:
    return all(document.own is None and document.kind == STORIES for document in documents)


def _notes(
    documents: Sequence[Document], text: EncodedText, candidate_text: EncodedText, run: CandidateRun
) -> Iterator[str]:
    if _is_stories(documents):
        yield "compared on the package's stories alone, because the demo knows no other text"
    if not run.divergences:
        reason = "tokenizers give different ids" if text != candidate_text else "vocabularies differ in size"
        yield f"the two {reason}, so KL and top-1 cannot be compared; perplexities are those of a byte"
    if max(window.document for window in text.windows) == 0 and (not run.divergences or len(text.windows) == 1):
        yield "there is a single window to compare, and so no standard error"
