"""The model card of a converted directory: its `README.md`, with the metadata that the Hub reads."""

from pathlib import Path

from helium_mlx.checkpoint import DEMO_DIRECTORY
from helium_mlx.config import HeliumConfig
from helium_mlx.json_files import MAX_JSON_BYTES, UnreadableFile, read_bytes
from helium_mlx.layout import Architecture
from helium_mlx.saving import architecture_name


def model_card(
    name: str, source_directory: Path, config: HeliumConfig, source: str, revision: str | None, *, to: str = "mlx"
) -> str:
    """Return the card of a directory called `name`, converted from `source` `to` MLX's or transformers' ("hf") form.

    The licence is the source's, taken from its own card; it is left out where that names none.
    """
    quantization = config.quantization
    is_repository = source_directory.parent.name == "snapshots"
    metadata = ["library_name: mlx", "pipeline_tag: text-generation", "tags:", "- mlx", "- helium"]
    if is_repository:
        metadata += [f"base_model: {source}"]
        metadata += ["base_model_relation: quantized"] if quantization else []
    metadata += _licence_lines(source_directory)
    origin = f"`{source}`" + (f" at revision `{revision}`" if revision else "")
    precision = (
        f"{quantization['bits']} bits in groups of {quantization['group_size']} ({quantization['mode']})"
        if quantization
        else str(config.dtype)
    )
    notes = "".join(f"\n- {warning}." for warning in interoperability_warnings(config))
    known = f"\nKnown:\n{notes}\n" if notes else ""
    toy = " That source is a toy for tests and demonstrations.\n" if source_directory == DEMO_DIRECTORY else ""
    return f"""---
{chr(10).join(metadata)}
---

# {name}

Converted to MLX from {origin} with `helium_mlx`, at {precision}.
{toy}
A base model: it continues text, and has no chat template.

```sh
python -m helium_mlx.generate --model {name} --prompt "Bonjour"
mlx_lm.generate --model {name} --prompt "Bonjour" --ignore-chat-template
```
{known}
What it was converted from and with, with the hash of every file: `conversion.json`.
"""


def interoperability_warnings(config: HeliumConfig, architecture: Architecture = "ForCausalLM") -> list[str]:
    """Return what mlx-lm does otherwise with such a model, one sentence each; nothing for the published ones."""
    if architecture != "ForCausalLM":
        return [
            f"mlx-lm and mlx-swift-lm have causal LMs only, and cannot open {architecture_name(config, architecture)}"
        ]
    if config.model_type == "llama":
        return [] if config.hidden_act == "silu" else [f"mlx-lm's Llama ignores hidden_act {config.hidden_act!r}"]
    warnings = []
    if config.tie_word_embeddings:
        warnings.append("mlx-lm's Helium cannot open a checkpoint with tied embeddings")
    if config.hidden_act not in ("silu", "swish"):
        warnings.append(f"mlx-lm's Helium ignores hidden_act {config.hidden_act!r} or cannot open its parameters")
    if config.rope_parameters["rope_type"] != "default":
        warnings.append(f"mlx-lm's Helium ignores rope_type {config.rope_parameters['rope_type']!r}")
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
