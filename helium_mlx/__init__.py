"""Kyutai's Helium language models on Apple silicon, with MLX.

    model, tokenizer = helium_mlx.load("demo")
    for chunk in helium_mlx.stream_generate(model, tokenizer, "Bonjour"): print(chunk.text, end="")

Importing the package loads next to nothing: each name brings its module in when it is first used. `generate`,
`convert`, `compare`, `upload` and `export` are functions here and modules of the same name
(`python -m helium_mlx.generate`); the functions win, whatever was imported first.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

from helium_mlx import forks as _forks

if TYPE_CHECKING:
    from helium_mlx.auto import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
    from helium_mlx.cache import KVCache, QuantizedKVCache, copy_cache, make_cache
    from helium_mlx.comparison import compare
    from helium_mlx.comparison_report import ComparisonReport
    from helium_mlx.config import HeliumConfig
    from helium_mlx.conversion import ConversionReport, convert
    from helium_mlx.engine import EngineCompletion, EngineStream, HeliumEngine
    from helium_mlx.errors import (
        ArgumentError,
        BundleError,
        CheckpointError,
        ComparisonError,
        ConfigError,
        ContextOverflowError,
        EngineError,
        EngineMemoryError,
        GenerationError,
        HeliumError,
        OptionError,
        QuantizationError,
        TokenizerError,
        UploadError,
        UsageError,
    )
    from helium_mlx.exporting import ExportReport, export
    from helium_mlx.generation import GenerationChunk, generate, stream_generate
    from helium_mlx.generation_config import GenerationConfig
    from helium_mlx.loading import load
    from helium_mlx.model import (
        HeliumForCausalLM,
        HeliumForSequenceClassification,
        HeliumForTokenClassification,
        HeliumModel,
    )
    from helium_mlx.prompt_cache import PromptCache, load_cache, save_cache
    from helium_mlx.publishing import UploadReport, upload
    from helium_mlx.rotating_cache import RotatingKVCache
    from helium_mlx.scoring import Score, score
    from helium_mlx.text_streamer import TextStreamer
    from helium_mlx.tokenizer import HeliumTokenizer

__version__ = "0.1.0"

_forks.watch()

# public name -> the module that it lives in
_HOMES = {
    "load": "loading",
    "generate": "generation",
    "stream_generate": "generation",
    "GenerationChunk": "generation",
    "convert": "conversion",
    "ConversionReport": "conversion",
    "compare": "comparison",
    "ComparisonReport": "comparison_report",
    "export": "exporting",
    "ExportReport": "exporting",
    "upload": "publishing",
    "UploadReport": "publishing",
    "score": "scoring",
    "Score": "scoring",
    "HeliumEngine": "engine",
    "EngineStream": "engine",
    "EngineCompletion": "engine",
    "GenerationConfig": "generation_config",
    "TextStreamer": "text_streamer",
    "HeliumConfig": "config",
    "HeliumModel": "model",
    "HeliumForCausalLM": "model",
    "HeliumForSequenceClassification": "model",
    "HeliumForTokenClassification": "model",
    "HeliumTokenizer": "tokenizer",
    "AutoConfig": "auto",
    "AutoModel": "auto",
    "AutoModelForCausalLM": "auto",
    "AutoTokenizer": "auto",
    "KVCache": "cache",
    "QuantizedKVCache": "cache",
    "RotatingKVCache": "rotating_cache",
    "make_cache": "cache",
    "copy_cache": "cache",
    "PromptCache": "prompt_cache",
    "load_cache": "prompt_cache",
    "save_cache": "prompt_cache",
    "HeliumError": "errors",
    "ArgumentError": "errors",
    "BundleError": "errors",
    "CheckpointError": "errors",
    "ComparisonError": "errors",
    "ConfigError": "errors",
    "ContextOverflowError": "errors",
    "EngineError": "errors",
    "EngineMemoryError": "errors",
    "GenerationError": "errors",
    "OptionError": "errors",
    "QuantizationError": "errors",
    "TokenizerError": "errors",
    "UploadError": "errors",
    "UsageError": "errors",
}

__all__ = [
    "ArgumentError",
    "AutoConfig",
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoTokenizer",
    "BundleError",
    "CheckpointError",
    "ComparisonError",
    "ComparisonReport",
    "ConfigError",
    "ContextOverflowError",
    "ConversionReport",
    "EngineCompletion",
    "EngineError",
    "EngineMemoryError",
    "EngineStream",
    "ExportReport",
    "GenerationChunk",
    "GenerationConfig",
    "GenerationError",
    "HeliumConfig",
    "HeliumEngine",
    "HeliumError",
    "HeliumForCausalLM",
    "HeliumForSequenceClassification",
    "HeliumForTokenClassification",
    "HeliumModel",
    "HeliumTokenizer",
    "KVCache",
    "OptionError",
    "PromptCache",
    "QuantizationError",
    "QuantizedKVCache",
    "RotatingKVCache",
    "Score",
    "TextStreamer",
    "TokenizerError",
    "UploadError",
    "UploadReport",
    "UsageError",
    "compare",
    "convert",
    "copy_cache",
    "export",
    "generate",
    "load",
    "load_cache",
    "make_cache",
    "save_cache",
    "score",
    "stream_generate",
    "upload",
]


class _Package(ModuleType):
    """Keeps `helium_mlx.generate` the function when Python, importing the module, sets it as an attribute."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


sys.modules[__name__].__class__ = _Package
