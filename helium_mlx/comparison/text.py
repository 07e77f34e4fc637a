"""The text of a comparison, and the windows that it is cut into.

By default the text is in the package, in the preview's six languages: `texts/*.txt`, everyday prose written for this
package, and `texts/stories/*.txt`, stories that the demo was not trained on, made by `examples/held_out_stories.py`.
The demo is compared on stories alone, since it knows nothing else. A blank line ends a document there. Text of one's
own is a document a file, under the file's name.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TypeVar

from helium_mlx.comparison.figures import OwnText
from helium_mlx.errors import ComparisonError, UsageError, shown
from helium_mlx.files.hub import DEMO_DIRECTORY, DEMO_NAME
from helium_mlx.files.text import read_text
from helium_mlx.files.untrusted import FileProblem

Value = TypeVar("Value")
LANGUAGES = ("en", "fr", "de", "it", "pt", "es")
TEXTS_DIRECTORY = Path(__file__).parent / "texts"
STORIES = "stories"
KINDS = (".", STORIES)

# A day of comparing on a laptop, and far more than any figure here needs.
MAX_TEXT_BYTES = 16 << 20


@dataclass(frozen=True)
class Document:
    """A text that is read from its beginning; no window reaches from one into the next.

    `own` is None for the package's, and `kind` then one of KINDS.
    """

    language: str
    text: str
    own: OwnText | None = None
    kind: str = "."

    @property
    def bytes(self) -> int:
        """UTF-8 bytes."""
        return len(self.text.encode())


@dataclass(frozen=True)
class Window:
    """A stretch of the document of this index: `ids` are the first id, usually BOS, and then the document's tokens."""

    document: int
    ids: list[int]

    @property
    def length(self) -> int:
        """How many positions are run, and how many tokens are scored."""
        return len(self.ids) - 1


def bundled_documents(languages: Sequence[str] | None = None, *, reference: str | Path | None = None) -> list[Document]:
    """Return the package's own documents, all or those of `languages`; for the demo as the reference its stories.

    Raises UsageError for a language that it lacks.
    """
    languages = LANGUAGES if languages is None else languages
    unknown = [language for language in languages if language not in LANGUAGES]
    if unknown or not languages:
        came = shown(unknown[0]) if unknown else "none"
        raise UsageError(f"language {came}: there is text in {', '.join(LANGUAGES)}; give your own with texts=...")
    is_demo = reference is not None and (str(reference) == DEMO_NAME or Path(reference) == DEMO_DIRECTORY)
    return [
        Document(language, text, kind=kind)
        for language in dict.fromkeys(languages)
        for kind in ((STORIES,) if is_demo else KINDS)
        for text in (TEXTS_DIRECTORY / kind / f"{language}.txt").read_text(encoding="utf-8").strip().split("\n\n")
    ]


def documents_of_files(names: Sequence[str]) -> list[Document]:
    """Return each file as a document under its name, "-" being standard input.

    Raises ComparisonError for a file that cannot be read, has no text, is too large, or is not UTF-8.
    """
    named = {name if name == "-" else os.path.abspath(name): name for name in names}
    names = list(named.values())
    return [_read(name, label) for name, label in zip(names, _labels(names), strict=True)]


def _labels(names: Sequence[str]) -> list[str]:
    """Return files' names without endings, or where these are not distinct, their paths from where those part.

    A whole path never, which is of this machine: labels go into cards.
    """
    labels = [("stdin" if name == "-" else Path(name).stem) or name for name in names]
    if len(set(labels)) == len(labels):
        return labels
    common = os.path.commonpath([os.path.dirname(os.path.abspath(name)) for name in names if name != "-"])
    return [name if name == "-" else os.path.relpath(name, common) for name in names]


def documents_of(texts: Mapping[str, str | Sequence[str]]) -> list[Document]:
    """Return documents from the text, or the texts, of each language. Raises ComparisonError where there is none."""
    if not isinstance(texts, Mapping):
        raise ComparisonError(f"texts is {shown(texts)}; give a mapping of languages, or other names, to texts")
    documents = [
        Document(language, text)
        for language, given in texts.items()
        for text in ([given] if isinstance(given, (str, bytes)) else given)
    ]
    for document in documents:
        if not isinstance(document.text, str):
            raise ComparisonError(
                f"a text of {shown(document.language)} is a {type(document.text).__name__}, not a string"
            )
        if not document.text.strip():
            raise ComparisonError(f"a text of {shown(document.language)} is empty; leave it out")
    if not documents:
        raise ComparisonError("there is no text to compare on; give some, or leave texts out for the package's own")
    return [replace(each, own=_own(each.language, each.text)) for each in documents]


@dataclass(frozen=True)
class EncodedText:
    """The windows of all documents, the longest first, so that the rows of a batch are of like length."""

    windows: list[Window]

    @property
    def positions(self) -> int:
        """How many tokens are scored."""
        return sum(window.length for window in self.windows)

    def by_window(self, values: Sequence[Value]) -> list[Sequence[Value]]:
        """Cut what was measured at all positions into what belongs to each window."""
        ends = list(accumulate(window.length for window in self.windows))
        return [values[end - window.length : end] for window, end in zip(self.windows, ends, strict=True)]


def encoded_text(ids_of_documents: Sequence[Sequence[int]], *, first: int, size: int) -> EncodedText:
    """Cut each document's ids into the fewest windows of `size` positions, of lengths that differ by one at most.

    A window begins with the id `first`, and every id of a document is scored in exactly one.
    """
    windows: list[Window] = []
    for document, ids in enumerate(ids_of_documents):
        count = -(-len(ids) // size)
        edges = [len(ids) * index // count for index in range(count + 1)]
        windows += [Window(document, [first, *ids[a:b]]) for a, b in pairwise(edges)]
    return EncodedText(sorted(windows, key=lambda window: -window.length))


def _own(name: str, text: str) -> OwnText:
    return OwnText(name, hashlib.sha256(text.encode()).hexdigest())


def _read(name: str, label: str) -> Document:
    try:
        file = read_text(name, MAX_TEXT_BYTES)
    except FileProblem as problem:
        raise ComparisonError(f"--text {name}: {problem}") from None
    if not file.text.strip():
        raise ComparisonError(f"--text {name}: has no text in it")
    return Document(label, file.text, OwnText("stdin" if name == "-" else Path(name).name, file.sha256))
