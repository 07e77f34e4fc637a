"""What shapes `HeliumForCausalLM.generate`: transformers' `GenerationConfig`, its defaults, and what is refused.

A setting comes, as there, from the call, else from the `generation_config` given to it, else from the model's own,
else from `DEFAULTS`; None at the call switches a setting off. Of transformers' some seventy settings, those that are
no field here are refused by name unless they are at the value that leaves them without effect.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from helium_mlx.checkpoint.config import HeliumConfig
from helium_mlx.errors import CheckpointError
from helium_mlx.files.hub import resolve_file
from helium_mlx.files.hub_access import HubAccess
from helium_mlx.files.local_paths import write_published
from helium_mlx.files.names import GENERATION_CONFIG_FILE
from helium_mlx.files.untrusted import FileProblem, read_json_object

SequenceBias = Mapping[tuple[int, ...], float] | list[tuple[list[int], float]]


@dataclass
class GenerationConfig:
    """Settings of `generate`; None where nothing is said. `others` are those of a file that have no meaning here.

    `max_length` and `min_length` count the prompt, `max_new_tokens` and `min_new_tokens` do not.
    """

    max_length: int | None = None
    max_new_tokens: int | None = None
    min_length: int | None = None
    min_new_tokens: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    top_h: float | None = None
    typical_p: float | None = None
    epsilon_cutoff: float | None = None
    eta_cutoff: float | None = None
    repetition_penalty: float | None = None
    encoder_repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    encoder_no_repeat_ngram_size: int | None = None
    bad_words_ids: list[list[int]] | None = None
    sequence_bias: SequenceBias | None = None
    suppress_tokens: list[int] | None = None
    begin_suppress_tokens: list[int] | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | list[int] | None = None
    exponential_decay_length_penalty: tuple[int, float] | None = None
    guidance_scale: float | None = None
    remove_invalid_values: bool | None = None
    renormalize_logits: bool | None = None
    max_time: float | None = None
    num_return_sequences: int | None = None
    num_beams: int | None = None
    length_penalty: float | None = None
    early_stopping: bool | str | None = None
    prompt_lookup_num_tokens: int | None = None
    max_matching_ngram_size: int | None = None
    num_assistant_tokens: int | None = None
    num_assistant_tokens_schedule: str | None = None
    assistant_confidence_threshold: float | None = None
    return_dict_in_generate: bool | None = None
    output_scores: bool | None = None
    output_logits: bool | None = None
    output_attentions: bool | None = None
    output_hidden_states: bool | None = None
    stop_strings: str | list[str] | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    use_cache: bool | None = None
    prefill_chunk_size: int | None = None
    others: dict[str, object] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "GenerationConfig":
        """Return the settings of a `generation_config.json`; nothing is checked before `generate` needs it."""
        known = {name: value for name, value in values.items() if name in NAMES}
        for name in ("eos_token_id", "pad_token_id"):
            if is_no_token(known.get(name)):
                known[name] = None
        return cls(**known, others={name: value for name, value in values.items() if name not in NAMES})  # pyright: ignore[reportArgumentType]

    @classmethod
    def from_model_config(cls, config: HeliumConfig) -> "GenerationConfig":
        """Return what a model's config says about generation: special ids and `use_cache`."""
        return cls.from_dict({**generation_values(config), "use_cache": config.use_cache})

    @classmethod
    def of_directory(cls, directory: Path, config: HeliumConfig) -> "GenerationConfig":
        """Return a checkpoint's settings: those of its `generation_config.json`, or of `config` where it has none.

        One that cannot be read counts as none; `open_checkpoint` warns of it.
        """
        values = read_generation_config(directory)
        return cls.from_model_config(config) if values is None else cls.from_dict(values)

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | Path,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        **settings: object,
    ) -> "GenerationConfig":
        """Read the `generation_config.json` of a checkpoint directory, a Hub repository, or "demo".

        `settings` replace what is read. Raises CheckpointError, one line, if there is none or it cannot be read.
        """
        access = HubAccess(token, cache_dir, local_files_only, force_download)
        path = resolve_file(
            path_or_repo, GENERATION_CONFIG_FILE, revision=revision, subfolder=subfolder or None, access=access
        )
        try:
            return cls.from_dict({**read_json_object(path), **settings})
        except FileProblem as problem:
            raise CheckpointError(f"{path}: {problem}") from None

    def save_pretrained(self, directory: str | Path) -> None:
        """Write `generation_config.json` into `directory`, made if need be. Raises CheckpointError if it cannot be."""
        write_published(Path(directory) / GENERATION_CONFIG_FILE, self.to_dict(), in_new_folder=True)

    def update(self, **settings: object) -> dict[str, object]:
        """Assign the settings that are fields here, and return the others, as transformers does."""
        for name in NAMES:
            if name in settings:
                setattr(self, name, settings.pop(name))
        return settings

    def to_dict(self) -> dict[str, object]:
        """Return every setting that is not None, as `generation_config.json` has them, assigned ones included."""
        assigned = {name: value for name, value in vars(self).items() if name != "others"}
        if isinstance(self.sequence_bias, Mapping):
            # JSON has no such keys; transformers writes the same.
            assigned["sequence_bias"] = [[list(sequence), value] for sequence, value in self.sequence_bias.items()]
        return {name: value for name, value in {**self.others, **assigned}.items() if value is not None}


NAMES = tuple(f.name for f in dataclasses.fields(GenerationConfig) if f.name != "others")

# transformers' `_get_default_generation_params`.
DEFAULTS: dict[str, object] = {
    "max_length": 20,
    "min_length": 0,
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "num_return_sequences": 1,
    "num_beams": 1,
    "length_penalty": 1.0,
    "early_stopping": False,
    "num_assistant_tokens": 20,
    "num_assistant_tokens_schedule": "constant",
    "assistant_confidence_threshold": 0.4,
    "use_cache": True,
}


def read_generation_config(directory: Path) -> dict[str, object] | None:
    """Return the contents of a checkpoint's `generation_config.json`; None where it is missing or cannot be read."""
    try:
        return read_json_object(directory / GENERATION_CONFIG_FILE)
    except FileProblem:
        return None


def is_no_token(token_id: object) -> bool:
    """Whether an id, or a list of them, stands for none: Llama configs say that with -1."""
    return token_id is None or token_id == [] or (isinstance(token_id, int) and token_id < 0)


def generation_values(config: HeliumConfig) -> dict[str, object]:
    """Return what `generation_config.json` says of a model that came without one."""
    ids = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
    }
    return {key: value for key, value in ids.items() if not is_no_token(value)}
