"""The options of one call of `HeliumForCausalLM.generate`: taken, checked against each other, or refused by name.

A setting comes, as in transformers, from the call, else from the `generation_config` given to it, else from the
model's own, else from `DEFAULTS`; None at the call switches a setting off. Of transformers' some seventy settings,
those that are not a field there and not ignored are refused by name, wherever they are set, unless they are at the
value that leaves them without effect.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast

from helium_mlx.checkpoint.generation_config import DEFAULTS, NAMES, GenerationConfig
from helium_mlx.errors import GenerationError, shown, unknown_keyword
from helium_mlx.model.processors import PROCESSORS, as_ids
from helium_mlx.model.setting_checks import CALLS, FLAG, POSITIVE, SCALE, SHARE, Check, number, whole_from

if TYPE_CHECKING:
    from helium_mlx.model.generate_outputs import Record

T = TypeVar("T")

# What a file says about itself.
_NOTES = ("_from_model_config", "_commit_hash", "transformers_version")

# What switched-off settings come down to.
_OFF: dict[str, object] = {**DEFAULTS, "top_k": 0}

# transformers' settings and arguments that are refused, after the values, None aside, at which they have no effect:
# docs/transformers.md says of each why.
REFUSED: dict[str, tuple[object, ...]] = {
    name: off
    for off, names in (
        (
            (),
            "assistant_early_exit assistant_ensemble_weight assistant_tokenizer cache_config constraints "
            "continuous_batching_config custom_generate dola_layers force_words_ids max_cache_len position_ids "
            "speculation_type use_model_defaults watermarking_config",
        ),
        ((False,), "is_assistant low_memory token_healing use_mtp"),
        ((0.0,), "diversity_penalty penalty_alpha"),
        ((1,), "num_beam_groups"),
        (("dynamic",), "cache_implementation"),
    )
    for name in names.split()
}

# Those that change nothing for a decoder of one process whose code is here, whatever they are.
IGNORED = (
    "assistant_lookbehind", "compile_config", "decoder_start_token_id", "disable_compile", "synced_gpus",
    "target_lookbehind", "trust_remote_code",
)  # fmt: skip

_SCHEDULES = ("constant", "heuristic", "heuristic_transient")

# What a call may return beside ids.
OUTPUTS = ("return_dict_in_generate", "output_scores", "output_logits", "output_attentions", "output_hidden_states")

_CHECKS: dict[str, Check] = {
    **{setting.name: setting.check for setting in PROCESSORS},
    "max_length": whole_from(1),
    "max_new_tokens": whole_from(1),
    "min_new_tokens": whole_from(0),
    "do_sample": FLAG,
    "temperature": (POSITIVE[0], "a number above 0; for greedy decoding set do_sample=False"),
    "num_return_sequences": whole_from(1),
    "use_cache": FLAG,
    **dict.fromkeys(OUTPUTS, FLAG),
    **dict.fromkeys(("prompt_lookup_num_tokens", "max_matching_ngram_size", "num_assistant_tokens"), whole_from(1)),
    "num_assistant_tokens_schedule": (_SCHEDULES.__contains__, f"one of {', '.join(_SCHEDULES)}"),
    "assistant_confidence_threshold": SHARE,
    "num_beams": whole_from(1),
    "prefill_chunk_size": whole_from(1),
    "length_penalty": SCALE,
    "early_stopping": (lambda value: isinstance(value, bool) or value == "never", "True, False or 'never'"),
    "max_time": number(lambda value: value >= 0, "of seconds, 0 or more"),
    "stopping_criteria": CALLS,
}

# Whose ids the vocabulary must have; those to suppress may be others, which then has no effect, as in transformers.
_IDS_OF: dict[str, Callable[..., Iterable[int]]] = {
    "sequence_bias": lambda bias: (i for pair in bias for i in (pair if isinstance(bias, Mapping) else pair[0])),
    "bad_words_ids": lambda sequences: (i for sequence in sequences for i in sequence),
    "forced_bos_token_id": as_ids,
    "forced_eos_token_id": as_ids,
}


@dataclass(frozen=True)
class GenerationOptions:
    """The settings of one call, complete and in range. Lengths count the prompt.

    `eos` is empty where nothing ends a row; `pad` is then not needed. `processors`: the settings of those by name.
    """

    max_length: int
    do_sample: bool
    processors: Mapping[str, object]
    num_return_sequences: int
    stop_strings: tuple[str, ...]
    eos: tuple[int, ...]
    pad: int | None
    use_cache: bool
    max_time: float | None
    num_beams: int
    length_penalty: float
    early_stopping: bool | str
    outputs: frozenset[str]
    prompt_lookup: int
    longest_ngram: int
    num_assistant_tokens: int
    assistant_schedule: str
    prefill_chunk_size: int | None

    @property
    def returns_layers(self) -> bool:
        """Whether attentions or hidden states are returned."""
        return not self.outputs.isdisjoint(("output_attentions", "output_hidden_states"))

    @property
    def rows_each(self) -> int:
        """How many rows each row of the prompt becomes."""
        return max(self.num_beams, self.num_return_sequences)

    def record(self) -> "Record | None":
        """Return what collects the outputs asked for; None where ids are all."""
        if "return_dict_in_generate" not in self.outputs:
            return None
        # Few calls ask for more.
        from helium_mlx.model.generate_outputs import Record

        return Record(**{name.removeprefix("output_"): name in self.outputs for name in OUTPUTS[1:]})

    @property
    def replaces_invalid(self) -> bool:
        """Whether logits that are no numbers are replaced, instead of refused."""
        return self.processors["remove_invalid_values"] is True

    @property
    def is_guided(self) -> bool:
        """Whether the model runs without the prompt, too."""
        return self.processors["guidance_scale"] not in (None, 1)


class Settings:
    """The settings of one call, checked one by one, before the prompt's length is known."""

    def __init__(
        self, own: object, given: object, options: Mapping[str, object], *, vocab_size: int, context: int
    ) -> None:
        models, supplied = _as_dict(own), _as_dict(given)
        options = {name: _plain(value) for name, value in options.items()}
        # A file may hold settings that nobody knows, which transformers ignores, too.
        from_file = own.others.keys() - supplied.keys() - options.keys() if isinstance(own, GenerationConfig) else ()
        values = {**DEFAULTS, **_said(models), **_said(supplied), **options}
        for name, value in {**supplied, **values}.items():
            if name in REFUSED or name not in from_file:
                _refuse_unsupported(name, value)
        self.values = {name: values.get(name) for name in NAMES}
        self.asked_for = {*_said(supplied), *_said(options)}
        self.context = context
        for name, value in self.values.items():
            if value is not None:
                _check(name, value, vocab_size)
        said = (_said(models), _said(supplied), _said(options))
        self.max_length_is_default = not any("max_length" in values for values in said)
        self.min_length_is_default = not any("min_length" in values for values in said)
        self._check_together()

    @property
    def bos(self) -> int | None:
        """The id that a text without a prompt begins with."""
        return cast("int | None", self.values["bos_token_id"])

    @property
    def eos(self) -> tuple[int, ...]:
        """The ids that end a row; -1, which transformers' users write for "never", is none."""
        value = self.values["eos_token_id"]
        ids = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
        return tuple(i for i in cast(list[int], ids) if i >= 0)

    @property
    def pad(self) -> int | None:
        """The id that finished rows are filled with: the first eos, if none is set, or -1, which stands for that."""
        value = cast("int | None", self.values["pad_token_id"])
        value = None if value == -1 else value
        return self.eos[0] if value is None and self.eos else value

    @property
    def num_return_sequences(self) -> int:
        """How many rows each row of the prompt becomes."""
        return cast(int, self._value("num_return_sequences"))

    @property
    def num_beams(self) -> int:
        """How many texts are kept at once."""
        return cast(int, self._value("num_beams"))

    def for_prompt(self, length: int, embedded: int = 0) -> GenerationOptions:
        """Return the options for a prompt of `length` ids; raises GenerationError if nothing can follow it.

        `embedded` is how many embeddings stand for ids, which lengths do not count then, but limits given do.
        """
        stop = self.values["stop_strings"]
        return GenerationOptions(
            max_length=self._max_length(length, embedded),
            do_sample=bool(self._value("do_sample")),
            processors={
                **{setting.name: self.values.get(setting.name) for setting in PROCESSORS},
                "min_length": self._min_length(length, embedded),
            },
            num_return_sequences=self.num_return_sequences,
            stop_strings=(stop,) if isinstance(stop, str) else tuple(cast(list[str], stop or ())),
            eos=self.eos,
            pad=self.pad,
            use_cache=bool(self._value("use_cache")),
            max_time=cast("float | None", self.values["max_time"]),
            num_beams=self.num_beams,
            length_penalty=float(cast(float, self._value("length_penalty"))),
            early_stopping=cast("bool | str", self._value("early_stopping")),
            outputs=frozenset(name for name in OUTPUTS if self.values[name]),
            prompt_lookup=cast(int, self.values["prompt_lookup_num_tokens"] or 0),
            longest_ngram=cast(int, self.values["max_matching_ngram_size"] or 2),
            num_assistant_tokens=cast(int, self._value("num_assistant_tokens")),
            prefill_chunk_size=cast("int | None", self.values["prefill_chunk_size"]),
            assistant_schedule=cast(str, self._value("num_assistant_tokens_schedule")),
        )

    def _value(self, name: str) -> object:
        value = self.values[name]
        return _OFF[name] if value is None else value

    def _check_together(self) -> None:
        suppressed = set(cast("list[int]", self.values["suppress_tokens"] or ()))
        for name in ("forced_bos_token_id", "forced_eos_token_id"):
            forced = self.values[name]
            if forced is not None and suppressed.issuperset(as_ids(cast(int, forced))):
                raise GenerationError(f"{name} is {forced}, and suppress_tokens has that; leave it out of one of them")
        asked, beams = self.num_return_sequences, self.num_beams
        if asked > beams > 1:
            raise GenerationError(f"num_return_sequences is {asked}; num_beams, {beams}, is the most")
        if self.values["prefill_chunk_size"] and not self._value("use_cache"):
            raise GenerationError("prefill_chunk_size needs a cache, and use_cache is False; leave out one of them")
        if beams > 1 and self.values["guidance_scale"] not in (None, 1):
            raise GenerationError("guidance_scale and num_beams are not supported together; leave out one of them")
        if asked > beams and not self._value("do_sample"):
            raise GenerationError(
                f"num_return_sequences is {asked}; greedy decoding gives one text: do_sample=True, or num_beams={asked}"
            )
        self._warn_of_idle()

    def _warn_of_idle(self) -> None:
        filters = {setting.name: setting.off for setting in PROCESSORS if setting.sampled}
        for needed, has_effect, names in (
            ("num_beams is 1", self.num_beams > 1, dict.fromkeys(("length_penalty", "early_stopping"))),
            ("return_dict_in_generate is not True", self.values["return_dict_in_generate"], dict.fromkeys(OUTPUTS[1:])),
            ("do_sample is not True", self._value("do_sample"), filters),
        ):
            idle = [name for name, off in names.items() if self._is_asked_for(name, off)]
            if idle and not has_effect:
                _warn(f"{', '.join(idle)} had no effect, since {needed}", deeper=1)

    def _is_asked_for(self, name: str, off: object = None) -> bool:
        return name in self.asked_for and self.values[name] not in (DEFAULTS.get(name, off), None, False)

    def _max_length(self, prompt: int, embedded: int) -> int:
        new = cast("int | None", self.values["max_new_tokens"])
        length = cast(int, self._value("max_length"))
        if new is not None:
            if not self.max_length_is_default:
                _warn(f"max_new_tokens ({new}) and max_length ({length}) are both set; max_new_tokens counts")
            return self._within_context(prompt + new, embedded)
        if self.max_length_is_default:
            _warn(f"neither max_new_tokens nor max_length is set; {length} new tokens are generated")
            length = min(prompt + length, self.context)
        else:
            length -= embedded
        if length <= prompt:
            raise GenerationError(
                f"the prompt has {prompt} tokens, and max_length, which counts them, is {length}; "
                "raise it, or set max_new_tokens"
            )
        return self._within_context(length, embedded)

    def _within_context(self, length: int, embedded: int) -> int:
        # transformers only reminds, too: its rotary embeddings have no end.
        if length + embedded > self.context:
            _warn(f"up to {length + embedded} tokens are asked for; the model was trained for {self.context}", deeper=1)
        return length

    def _min_length(self, prompt: int, embedded: int) -> int:
        new, length = cast("int | None", self.values["min_new_tokens"]), cast(int, self._value("min_length"))
        if new is not None:
            if not self.min_length_is_default:
                _warn(f"min_new_tokens ({new}) and min_length ({length}) are both set; min_new_tokens counts")
            return prompt + new
        return max(length - embedded, 0)


def _said(values: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in values.items() if value is not None}


def _as_dict(given: object) -> dict[str, object]:
    """Return the settings of a `generation_config`: ours, transformers' own, or a dict."""
    if given is None:
        return {}
    to_dict = getattr(given, "to_dict", None)
    values = to_dict() if callable(to_dict) else given
    if not isinstance(values, Mapping):
        raise GenerationError(
            f"generation_config is {type(given).__name__}; expected a GenerationConfig, or a dict of its settings"
        )
    return {name: _plain(value) for name, value in values.items() if name not in _NOTES}


def _plain(value: object) -> object:
    """Return numbers of numpy and MLX, alone, in an array or in a list, as Python's; anything else as it is."""
    to_list = getattr(value, "tolist", None)
    if callable(to_list):
        return to_list()
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _refuse_unsupported(name: str, value: object) -> None:
    if name in NAMES or name in IGNORED:
        return
    if name not in REFUSED:
        raise GenerationError(unknown_keyword("generate", name, [*NAMES, *REFUSED, *IGNORED]))
    if value is None or any(value is off or (type(value) is not bool and value == off) for off in REFUSED[name]):
        return
    shown = repr(value) if isinstance(value, (bool, int, float, str)) else type(value).__name__
    raise GenerationError(f"{name} is {shown}; this argument of transformers' generate is not supported: leave it out")


def _check(name: str, value: object, vocab_size: int) -> None:
    if name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        none = {"eos_token_id": ", a list of them, or -1 for never", "pad_token_id": ", or -1 for none"}.get(name, "")
        is_list = name == "eos_token_id" and isinstance(value, (list, tuple))
        ids = cast(list[object], value) if is_list else [value]
        holds = all(type(i) is int and (0 <= cast(int, i) < vocab_size or (none and i == -1)) for i in ids)
        expected = f"an id from 0 to {vocab_size - 1}{none}"
    elif name == "stop_strings":
        strings = [value] if isinstance(value, str) else value
        holds = isinstance(strings, (list, tuple)) and all(isinstance(s, str) and s for s in strings)
        expected = "text of at least one character, or a list of such"
    else:
        holds, expected = _CHECKS[name][0](value), _CHECKS[name][1]
    if not holds:
        raise GenerationError(f"{name} is {shown(value)}; it must be {expected}")
    largest = max(_IDS_OF[name](value), default=0) if name in _IDS_OF else 0
    if largest >= vocab_size:
        raise GenerationError(f"{name} has the token {largest}; ids are 0 to {vocab_size - 1}")


def checked(name: str, value: T) -> T:
    """Return an argument of `generate` that is no setting. Raises GenerationError for one that cannot be."""
    holds, expected = _CHECKS[name]
    if value is not None and not holds(value):
        raise GenerationError(f"{name} is {shown(value)}; it must be {expected}")
    return value


def listed(name: str, given: Sequence[T] | None) -> list[T]:
    """Return functions of the caller's, one that came twice once. Raises GenerationError for anything else."""
    functions: list[T] = []
    for function in checked(name, given) or ():
        if function not in functions:
            functions.append(function)
    return functions


def _warn(message: str, *, deeper: int = 0) -> None:
    # Out of here, the batch decoder and the model's method: to the line that called `generate`.
    warnings.warn(message, stacklevel=6 + deeper)
