"""The errors that a user can act on. A command prints one as a single line; anything else is a bug.

    HeliumError                        what all of them are; a command ends with status 1
    ├── UsageError                     options out of range, or that exclude each other; status 2
    │   └── OptionError                such an option of generation (a GenerationError too)
    ├── GenerationError                text that cannot be generated or scored
    │   ├── OptionError
    │   └── ContextOverflowError       a prompt, or a prompt and its completion, is too long
    ├── KeywordError                   a keyword that a function of the package has not
    ├── ArgumentError                  an argument of a model's forward pass
    ├── ConfigError                    config.json, or a field of HeliumConfig
    ├── CheckpointError                a directory, file or tensor
    ├── TokenizerError                 a tokenizer's file, or text and ids that it cannot take
    ├── QuantizationError              bits, group size, mode, calibration
    ├── ComparisonError                two models that cannot be compared
    ├── UploadError                    the Hub, or what may not go there
    ├── BundleError                    a bundle for programs without Python
    └── EngineError                    an engine that is closed, dead or forked
        └── EngineMemoryError          more than its memory_limit

Those about values are ValueErrors: UsageError, GenerationError, ArgumentError, ConfigError, TokenizerError,
QuantizationError and ComparisonError. A KeywordError is a TypeError, as Python's own is.
"""

from collections.abc import Iterable, Sequence


class HeliumError(Exception):
    """Something the user can mend: the message names what came, what was expected and what to do."""


class UsageError(HeliumError, ValueError):
    """Options, of whatever command or function, that are out of range or exclude each other: exit status 2.

    The message begins with the option's name where it is about one.
    """


class GenerationError(HeliumError, ValueError):
    """Text that cannot be generated or scored: options, prompt or cache do not fit, or logits are not numbers."""


class OptionError(UsageError, GenerationError):
    """An option of generation that is out of range; the message begins with its name."""


class ContextOverflowError(GenerationError):
    """A prompt, or a prompt with its completion, longer than the model's context."""


class KeywordError(HeliumError, TypeError):
    """A keyword that a public function does not take; the message has the nearest that it does."""


class ArgumentError(HeliumError, ValueError):
    """An argument of a model's forward pass that does not fit the model or the other arguments."""


class ConfigError(HeliumError, ValueError):
    """A `config.json` or a `HeliumConfig` field that the model cannot be built from."""


class CheckpointError(HeliumError):
    """A checkpoint directory, file or tensor that is missing, malformed or does not fit its config."""


class TokenizerError(HeliumError, ValueError):
    """A tokenizer file that is missing or malformed, or text and ids that it cannot take."""


class QuantizationError(HeliumError, ValueError):
    """Bits, group size or mode that MLX does not have or that do not fit a tensor."""


class ComparisonError(HeliumError, ValueError):
    """A comparison of two models that cannot be made: a text, a window or a model that does not lend itself to it."""


class UploadError(HeliumError):
    """An upload that the Hub refused or that could not be finished."""


class BundleError(HeliumError):
    """A bundle that is missing, damaged, or made for another backend or another version of MLX."""


class EngineError(HeliumError):
    """An engine that was closed, whose worker has died, or that belongs to another process."""


class EngineMemoryError(EngineError):
    """Weights and caches that do not fit under an engine's `memory_limit`; the message has the figures."""


def shown(value: object, limit: int = 60) -> str:
    """Return a value for a message: its `repr`, in which nothing is unprintable, cut to `limit` characters."""
    if isinstance(value, (list, tuple, dict)) and len(value) > limit:
        return f"{type(value).__name__} of {len(value)}"
    try:
        return one_line(repr(value), limit)
    except ValueError:
        return "a number of thousands of digits"


def one_line(text: str, limit: int = 500) -> str:
    """Return a text that a file's contents went into, without line breaks and the like, cut to `limit` characters."""
    text = text if len(text) <= limit else f"{text[: limit - 1]}…"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the question after the nearest of what is known, to end a message with; empty if nothing is near."""
    near = nearest(word, known)
    return f"; did you mean {near}?" if near else ""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return which of the known words or flags is nearest to one that is not known; None if nothing is near."""
    import difflib

    names = {name.lstrip("-"): name for name in known}
    word = word.lstrip("-")
    near = difflib.get_close_matches(word, names, n=1)
    # An abbreviation is less like its word than a misspelling.
    near = near or [name for name in names if len(word) > 2 and name.startswith(word)]
    return names[near[0]] if near else None


def unknown_keyword(function: str, keyword: str, known: Sequence[str]) -> str:
    """Return the message about a keyword that a function does not take."""
    return f"{function}() has no argument {keyword}{did_you_mean(keyword, known) or f'; it takes {some(known, 9)}'}"


def some(names: Sequence[str], most: int = 3) -> str:
    """Return the first of some names for a message, and how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def lone_surrogate(text: str) -> str | None:
    """Return which half of a character, which UTF-8 cannot express, a text has and where; None if it has none."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"the lone surrogate {text[error.start]!a} at position {error.start}"
    return None
