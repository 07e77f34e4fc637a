"""The model card of a converted directory: its `README.md`, with the metadata that the Hub reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from helium_mlx.checkpoint import DEMO_DIRECTORY
from helium_mlx.config import HeliumConfig
from helium_mlx.json_files import MAX_JSON_BYTES, UnreadableFile, read_bytes
from helium_mlx.layout import Architecture
from helium_mlx.saving import architecture_name


@dataclass(frozen=True)
class CardFacts:
    """What a card says of a conversion beside what the config says.

    `name` is the directory's, `source` the path or repository that was named, `recipe` the one that chose the bits.
    """

    name: str
    source: str
    revision: str | None
    recipe: str | None
    bits_per_weight: float
    for_transformers: bool
    architecture: Architecture
    warnings: Sequence[str]


def model_card(facts: CardFacts, source_directory: Path, config: HeliumConfig) -> str:
    """Return the card of a conversion. The licence is the source's, from its own card, and left out without one."""
    lines = ["---", *_metadata(facts, source_directory, config), "---", "", f"# {facts.name}", ""]
    origin = f"`{facts.source}`" + (f" at revision `{facts.revision}`" if facts.revision else "")
    target = "to the form that transformers reads" if facts.for_transformers else "to MLX"
    lines += [f"Converted {target} from {origin} with `helium_mlx`, at {_precision(facts, config)}."]
    if source_directory == DEMO_DIRECTORY:
        lines += ["That source is a toy for tests and demonstrations."]
    if facts.architecture == "ForCausalLM":
        lines += ["", "A base model: it continues text, and has no chat template."]
        lines += [] if facts.for_transformers else ["", "```sh", *_commands(facts.name), "```"]
    if facts.warnings:
        lines += ["", "Known:", "", *(f"- {warning}." for warning in facts.warnings)]
    lines += ["", "What it was converted from and with, with the hash of every file: `conversion.json`.", ""]
    return "\n".join(lines)


def _metadata(facts: CardFacts, source_directory: Path, config: HeliumConfig) -> list[str]:
    task = "text-generation" if facts.architecture == "ForCausalLM" else None
    library = "transformers" if facts.for_transformers else "mlx"
    lines = [f"library_name: {library}", *([f"pipeline_tag: {task}"] if task else []), "tags:", "- helium"]
    lines += [] if facts.for_transformers else ["- mlx"]
    if source_directory.parent.name == "snapshots":
        lines += [f"base_model: {facts.source}"]
        lines += ["base_model_relation: quantized"] if config.quantization else []
    return lines + _licence_lines(source_directory)


def _precision(facts: CardFacts, config: HeliumConfig) -> str:
    settings = config.quantization
    if not settings:
        return str(config.dtype)
    if facts.recipe:
        return f"{facts.bits_per_weight:.2f} bits per weight by the recipe `{facts.recipe}`"
    return f"{settings['bits']} bits in groups of {settings['group_size']} ({settings['mode']})"


def _commands(name: str) -> list[str]:
    return [
        f'python -m helium_mlx.generate --model {name} --prompt "Bonjour"',
        f'mlx_lm.generate --model {name} --prompt "Bonjour" --ignore-chat-template',
    ]


def interoperability_warnings(config: HeliumConfig, architecture: Architecture = "ForCausalLM") -> list[str]:
    """Return what mlx-lm or mlx-swift-lm do otherwise with such a model, one sentence each; none for the published."""
    if architecture != "ForCausalLM":
        return [
            f"mlx-lm and mlx-swift-lm have causal LMs only, and cannot open {architecture_name(config, architecture)}"
        ]
    rope_type = config.rope_parameters["rope_type"]
    if config.model_type == "llama":
        warnings = [] if config.hidden_act == "silu" else [f"mlx-lm's Llama ignores hidden_act {config.hidden_act!r}"]
        if rope_type in ("yarn", "longrope"):
            warnings.append(f"mlx-swift-lm's Llama cannot open rope_type {rope_type!r}")
        return warnings
    warnings = []
    if config.tie_word_embeddings:
        warnings.append("mlx-lm's Helium cannot open a checkpoint with tied embeddings")
    if config.hidden_act not in ("silu", "swish"):
        warnings.append(f"mlx-lm's Helium ignores hidden_act {config.hidden_act!r} or cannot open its parameters")
    if rope_type != "default":
        warnings.append(f"mlx-lm's Helium ignores rope_type {rope_type!r}")
    return warnings


def _licence_lines(directory: Path) -> list[str]:
    """Return the `license` lines of a card's front matter, as they are."""
    try:
        card = read_bytes(directory / "README.md", MAX_JSON_BYTES)
    except UnreadableFile:
        return []
    front_matter = card.decode(errors="replace").split("---")
    lines = front_matter[1].splitlines() if len(front_matter) > 2 else []
    return [line for line in lines if line.startswith("license")]
