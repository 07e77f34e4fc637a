"""The model card of a converted directory: its `README.md`, with the metadata that the Hub reads."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx

from helium_mlx.checkpoint.config import HeliumConfig
from helium_mlx.checkpoint.layout import Architecture, architecture_name
from helium_mlx.files.hub import DEMO_DIRECTORY
from helium_mlx.kv_cache.memory import cache_bytes
from helium_mlx.model_card.quality import HEADING, how_to_measure
from helium_mlx.model_card.source import Source, licence_section, read_source
from helium_mlx.quantization.rounding import Rounding
from helium_mlx.version import __version__

_CONTEXTS = (1024, 2048, 4096)

# What is said of a rounding that is not MLX's own.
_ROUNDED: dict[Rounding, str] = {
    "fitted": "with scales and biases fitted on calibration text (`--rounding fitted`)",
    "gptq": "rounded with GPTQ on calibration text (`--rounding gptq`)",
}

_CONTINUES = "A base model: it continues text, follows no instructions, and has no chat template."
_CHATS = "A chat template came with it, which mlx-lm and transformers apply; `helium_mlx` continues text as it is."

# How a card's commands name the model, in a shell, in Python and in Swift.
_SHELL_NAME = re.compile(r"""(?<=--model |ndidate )(?:'[^'\n]*'|"'"|[^\s'])+""")
_QUOTED_NAME = re.compile(r'((?<=load\()|(?<=\(id: ))"(?:[^"\\\n]|\\.)*"')


@dataclass(frozen=True)
class CardFacts:
    """What a card says of a conversion beside what the config says.

    `name` is the directory's or the repository's, `source` the path or repository that was named, with the SHA-256 of
    its files; `recipe` is the one that chose the bits, or `target_bpw` is what sensitivities chose them for; `rounding`
    is how weights became codes, and `dequantized_from` the source's quantization, where that was undone.
    """

    name: str
    source: str
    revision: str | None
    recipe: str | None
    bits_per_weight: float
    for_transformers: bool
    architecture: Architecture
    warnings: Sequence[str]
    total_bytes: int
    source_files: Mapping[str, str] = field(default_factory=dict)
    target_bpw: float | None = None
    rounding: Rounding = "nearest"
    dequantized_from: Mapping[str, object] | None = None


def model_card(
    facts: CardFacts, source_directory: Path, config: HeliumConfig, *, source_root: Path | None = None
) -> str:
    """Return the card of a conversion. The licence is that of the source or the `source_root` around it."""
    source = read_source(source_directory, config, facts.source_files, root=source_root)
    is_causal = facts.architecture == "ForCausalLM"
    lines = ["---", *_metadata(facts, source, config), "---", "", f"# {facts.name}", ""]
    target = "to the form that transformers reads" if facts.for_transformers else "to MLX"
    precision = _precision(facts, config)
    lines += [f"Converted {target} from {_origin(facts, source)} with `helium_mlx` {__version__}, at {precision}."]
    if source_directory == DEMO_DIRECTORY:
        lines += ["That source is a toy for tests and demonstrations."]
    if is_causal and not facts.for_transformers:
        lines += ["", "## Use", "", *_use(facts.name, has_chat_template=source.has_chat_template)]
    if is_causal and config.quantization:
        lines += ["", HEADING, "", *how_to_measure(_named(facts), facts.name)]
    if is_causal:
        lines += ["", "## Memory", "", *_memory(facts, config)]
    lines += ["", "## Limits", "", *_limits(facts, source, config)]
    lines += ["", "## Licence", "", *licence_section(source)]
    lines += ["", "What it was converted from and with, with the hash of every file: `conversion.json`.", ""]
    return "\n".join(lines)


def with_repository(card: str, repo: str) -> str:
    """Return a card whose heading and commands name a repository of the Hub in place of a directory."""
    card = re.sub(r"^# .*$", f"# {repo.partition('/')[2]}", card, count=1, flags=re.MULTILINE)
    return _QUOTED_NAME.sub(f'"{repo}"', _SHELL_NAME.sub(repo, card))


def _metadata(facts: CardFacts, source: Source, config: HeliumConfig) -> list[str]:
    import yaml

    values: dict[str, object] = {"library_name": "transformers" if facts.for_transformers else "mlx"}
    if facts.architecture == "ForCausalLM":
        values["pipeline_tag"] = "text-generation"
    values["tags"] = ["helium"] if facts.for_transformers else ["helium", "mlx"]
    if source.repository is not None:
        values["base_model"] = source.repository
        if source.is_exact and config.quantization:
            values["base_model_relation"] = "quantized"
    return yaml.safe_dump(values | source.metadata, sort_keys=False, allow_unicode=True).splitlines()


def _named(facts: CardFacts) -> str:
    """Return the source as others can name it: no path of this machine but its last part."""
    is_repository = facts.revision is not None
    return facts.source if is_repository else Path(facts.source).name


def _origin(facts: CardFacts, source: Source) -> str:
    if facts.revision is None or source.repository is None:
        origin = f"`{_named(facts)}`"
        return f"{origin}, of `{source.repository}`," if source.repository else origin
    address, subfolder = f"https://huggingface.co/{source.repository}", facts.source.partition(":")[2]
    folder, below = (f", folder `{subfolder}`,", f"/{subfolder}") if subfolder else ("", "")
    tree = f"{address}/tree/{facts.revision}{below}"
    return f"[`{source.repository}`]({address}){folder} at revision [`{facts.revision}`]({tree})"


def _precision(facts: CardFacts, config: HeliumConfig) -> str:
    settings = config.quantization
    if not settings:
        if not facts.dequantized_from:
            return str(config.dtype)
        before = f"{_bits(facts.dequantized_from)} bits a weight"
        return f"{config.dtype}, dequantized from {before}, and so no nearer to the original than those were"
    rounded = f", {_ROUNDED[facts.rounding]}" if facts.rounding in _ROUNDED else ""
    if facts.recipe:
        return f"{facts.bits_per_weight:.2f} bits per weight by the recipe `{facts.recipe}`{rounded}"
    if facts.target_bpw is not None:
        dealt = f"{_bits(settings)} a module, by what each was measured to cost (`--target-bpw`)"
        return f"{facts.bits_per_weight:.2f} bits per weight, {dealt}{rounded}"
    uniform = f"{settings['bits']} bits in groups of {settings['group_size']} ({settings['mode']})"
    return f"{uniform}, which with scales are {facts.bits_per_weight:.2f} bits per weight{rounded}"


def _bits(settings: Mapping[str, object]) -> str:
    """Return the bits of a quantization's weights, "4" or "3 to 6"."""
    own = [module for module in settings.values() if isinstance(module, dict)]
    bits = {module["bits"] for module in [settings, *own]}
    return f"{min(bits)} to {max(bits)}" if len(bits) > 1 else f"{settings['bits']}"


def _use(name: str, *, has_chat_template: bool) -> list[str]:
    shell, quoted = shlex.quote(name), json.dumps(name, ensure_ascii=False)
    # mlx-lm applies the template that there is, and fails without one.
    as_text = "" if has_chat_template else " --ignore-chat-template"
    return [
        "```sh",
        f'python -m helium_mlx.generate --model {shell} --prompt "Bonjour"',
        f'mlx_lm.generate --model {shell} --prompt "Bonjour"{as_text}',
        "```",
        "",
        "```python",
        "import helium_mlx",
        "",
        f"model, tokenizer = helium_mlx.load({quoted})",
        'print(helium_mlx.generate(model, tokenizer, "Bonjour", max_tokens=64))',
        "```",
        "",
        "In Swift, with [mlx-swift-lm](https://github.com/ml-explore/mlx-swift-lm), once it is on the Hub:",
        "",
        "```swift",
        "import MLX",
        "import MLXLLM",
        "import MLXLMCommon",
        "",
        f"let model = try await LLMModelFactory.shared.loadContainer(configuration: .init(id: {quoted}))",
        "try await model.perform { context in",
        '    let prompt = LMInput(tokens: MLXArray(context.tokenizer.encode(text: "Bonjour")))',
        "    let stream = try MLXLMCommon.generate(",
        "        input: prompt, parameters: GenerateParameters(maxTokens: 64), context: context)",
        '    for await part in stream { print(part.chunk ?? "", terminator: "") }',
        "}",
        "```",
    ]


def _memory(facts: CardFacts, config: HeliumConfig) -> list[str]:
    dtype = getattr(mx, str(config.dtype))
    lengths = [tokens for tokens in _CONTEXTS if tokens <= config.max_position_embeddings]
    caches = {
        tokens: cache_bytes(config, tokens, dtype=dtype) for tokens in lengths or [config.max_position_embeddings]
    }
    rows = [
        f"| {tokens:,} | {_megabytes(cache)} | {_megabytes(cache + facts.total_bytes)} |"
        for tokens, cache in caches.items()
    ]
    return [
        f"The weights take {_megabytes(facts.total_bytes)} MB, on disk as in memory. A key-value cache, in "
        f"{config.dtype}, comes on top. A MB is 10^6 bytes.",
        "",
        "| tokens of context | cache, MB | weights and cache, MB |",
        "| --: | --: | --: |",
        *rows,
    ]


def _limits(facts: CardFacts, source: Source, config: HeliumConfig) -> list[str]:
    limits = [f"The context is {config.max_position_embeddings:,} tokens."]
    if facts.architecture == "ForCausalLM":
        limits.insert(0, _CHATS if source.has_chat_template else _CONTINUES)
    if source.problem:
        limits.append(f"{source.problem}.")
    return [f"- {limit}" for limit in [*limits, *(f"{warning}." for warning in facts.warnings)]]


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f}" if count >= 1e8 else f"{count / 1e6:,.1f}"


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
