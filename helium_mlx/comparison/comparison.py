"""`compare`: how far a candidate checkpoint is from its reference, on text: KL divergence, top-1, perplexity.

The text is cut into windows that begin with one BOS each. The reference runs first; its logits go to a temporary file
(see `logits_file.py`), and its model out of memory before the candidate's comes in. Log-probabilities are in float32.
Both models compute in one dtype, the wider of their own, so that the weights are all that differs.

Where the two tokenizers give different ids, distributions over tokens cannot be compared: what remains are bits per
byte and the perplexities of a byte. Batches change nothing but the last digits: each row's padding is behind it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import mlx.core as mx

from helium_mlx.checkpoint.config import DTYPES
from helium_mlx.comparison.passes import CandidateRun, LogitsFile, Pass, run_candidate, run_reference
from helium_mlx.comparison.report import ComparisonReport, LanguageFigures, Measured, figures
from helium_mlx.comparison.sides import (
    MLX_LM_PREFIX,
    HeliumSide,
    Hybrid,
    Side,
    layer_groups,
    open_side,
    require_same_shape,
)
from helium_mlx.comparison.text import Document, EncodedText, bundled_documents, documents_of, encoded_text
from helium_mlx.errors import ComparisonError, UsageError
from helium_mlx.option_values import OnProgress, require_whole

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
    `languages` or of all. `window` is the most tokens that are run at once, BOS included: 512, or the models' context.
    `batch_size` windows are run together. `dtype` (bfloat16, float16, float32) is what both compute in; None is the
    wider of their own (float32 for quantized weights on the CPU). `by_layers` fills the report's `layers`, for which
    the reference runs once more for each group (see `hybrid_model.py`). `on_progress(done, total)` counts tokens.

    Raises HeliumError, one line, for what cannot be opened or compared, and for logits that are not finite.
    """
    if texts is not None and languages is not None:
        raise UsageError("languages are those of the package's own text; leave them out with texts of your own")
    documents = bundled_documents(languages) if texts is None else documents_of(texts)
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
    batch_size = require_whole("batch_size", batch_size, 1, error=UsageError)
    ours = open_side(str(reference), revision=reference_revision, subfolder=reference_subfolder)
    others = [
        open_side(str(candidate), revision=candidate_revision, subfolder=candidate_subfolder)
        for candidate in candidates
    ]
    size = _window_size(window, [ours, *others])
    text = _encoded(documents, ours, size)
    texts = [_encoded(documents, other, size) for other in others]
    alike = [text == theirs for theirs in texts]
    groups = [
        _groups(ours, other, is_alike) if by_layers else {} for other, is_alike in zip(others, alike, strict=True)
    ]
    runs = 1 + sum(map(len, groups))
    on_scored = _counting(runs * text.positions + sum(each.positions for each in texts), on_progress)
    how = Pass(_common_dtype(dtype, [ours, *others]), batch_size, on_scored)
    with LogitsFile(text.positions) as cached:
        losses = run_reference(ours, text, how, cached if any(alike) else None)
        for other, theirs, is_alike, parts in zip(others, texts, alike, groups, strict=True):
            run = run_candidate(other, theirs, how, cached if is_alike else None)
            by_document = _measured(documents, text, losses, theirs, run)
            layers = {name: run_candidate(part, text, how, cached).mean_kl for name, part in parts.items()}
            yield ComparisonReport(
                **asdict(_figures(documents, by_document)),
                languages=_by_language(documents, by_document),
                reference=ours.described(how.dtype),
                candidate=other.described(how.dtype),
                window=size,
                windows=len(text.windows),
                texts=tuple(document.own for document in documents if document.own is not None),
                perplexity_unit="token" if run.divergences else "byte",
                layers=layers,
                notes=tuple(_notes(text, theirs, run)),
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
        if side.vocab_size is not None and max(ids) >= side.vocab_size:
            raise ComparisonError(
                f"{side.name}: its tokenizer gives the id {max(ids)}, and the model has {side.vocab_size} rows"
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
    documents: Sequence[Document], text: EncodedText, losses: Sequence[float], theirs: EncodedText, run: CandidateRun
) -> dict[int, list[Measured]]:
    """Return what was measured of each document: window by window, or as a whole where windows do not correspond."""
    measured: dict[int, list[Measured]] = defaultdict(list)
    if run.divergences:
        columns = map(text.by_window, (losses, run.losses, run.divergences, run.agreements))
        for window, *values in zip(text.windows, *columns, strict=True):
            measured[window.document].append(Measured(window.length, *values))
        return measured
    # Windows of different tokenizers do not line up.
    reference, candidate = _by_document(text, losses), _by_document(theirs, run.losses)
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


def _groups(ours: Side, other: Side, is_alike: bool) -> dict[str, Hybrid]:
    """Return the reference with each group of its modules taken from the candidate."""
    if not (isinstance(ours, HeliumSide) and isinstance(other, HeliumSide)):
        raise ComparisonError(f"KL by group of layers needs two checkpoints of this package, without {MLX_LM_PREFIX}")
    require_same_shape(ours.checkpoint, other.checkpoint)
    if not is_alike:
        raise ComparisonError("KL by group of layers needs one tokenizer, and these two give different ids")
    return {name: Hybrid(ours, other, taken) for name, taken in layer_groups(ours.checkpoint).items()}


def _notes(text: EncodedText, theirs: EncodedText, run: CandidateRun) -> Iterator[str]:
    if not run.divergences:
        reason = "tokenizers give different ids" if text != theirs else "vocabularies differ in size"
        yield f"the two {reason}, so KL and top-1 cannot be compared; perplexities are those of a byte"
    if max(window.document for window in text.windows) == 0 and (not run.divergences or len(text.windows) == 1):
        yield "there is a single window to compare, and so no standard error"
