"""The errors that a user can act on. A command prints one as a single line; anything else is a bug."""


class HeliumError(Exception):
    """Something the user can mend: the message names what came, what was expected and what to do."""


class ConfigError(HeliumError, ValueError):
    """A `config.json` or a `HeliumConfig` field that the model cannot be built from."""


class CheckpointError(HeliumError):
    """A checkpoint directory, file or tensor that is missing, malformed or does not fit its config."""


class TokenizerError(HeliumError, ValueError):
    """A tokenizer file that is missing or malformed, or text and ids that it cannot take."""


class ArgumentError(HeliumError, ValueError):
    """An argument of a model's forward pass that does not fit the model or the other arguments."""


class GenerationError(HeliumError, ValueError):
    """Generation options that are out of range or exclude each other."""


class UsageError(HeliumError, ValueError):
    """Options, whatever they are to act on, that are out of range or exclude each other: exit status 2."""


class OptionError(GenerationError, UsageError):
    """An option that is out of range; the message begins with its name."""


class ContextOverflowError(GenerationError):
    """A prompt, or a prompt with its completion, longer than the model's context."""


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
