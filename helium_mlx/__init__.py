"""Kyutai's Helium language models on Apple silicon, with MLX.

    model, tokenizer = helium_mlx.load("demo")
    for chunk in helium_mlx.stream_generate(model, tokenizer, "Bonjour"): print(chunk.text, end="")

Importing the package loads next to nothing: each name brings its module in when it is first used. `generate`,
`convert`, `compare`, `evaluate`, `upload` and `export` are functions here and modules of the same name
(`python -m helium_mlx.generate`); the functions win, whatever was imported first.
"""

import importlib
import sys
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING

from helium_mlx import process as _process
from helium_mlx.version import __version__ as __version__

if TYPE_CHECKING:
    from helium_mlx.bundle.exporting import ExportReport, export
    from helium_mlx.bundle.runner import BundleRunner
    from helium_mlx.checkpoint.config import HeliumConfig
    from helium_mlx.checkpoint.generation_config import GenerationConfig
    from helium_mlx.comparison.comparison import compare
    from helium_mlx.comparison.report import ComparisonReport
    from helium_mlx.conversion.conversion import ConversionReport, convert
    from helium_mlx.engine.engine import HeliumEngine
    from helium_mlx.engine.stream import EngineCompletion, EngineStream
    from helium_mlx.engine.suggestions import SuggestedWord, Suggestion, Suggestions, SuggestionStream
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
        KeywordError,
        OptionError,
        QuantizationError,
        TokenizerError,
        UploadError,
        UsageError,
    )
    from helium_mlx.evaluation.report import EvaluationReport
    from helium_mlx.evaluation.running import evaluate
    from helium_mlx.generation.completion import GenerationChunk
    from helium_mlx.generation.prompt_cache import PromptCache
    from helium_mlx.generation.scoring import Score, score
    from helium_mlx.generation.streaming import generate, stream_generate
    from helium_mlx.kv_cache.cache import KVCache, QuantizedKVCache
    from helium_mlx.kv_cache.disk import load_cache, save_cache
    from helium_mlx.kv_cache.make import copy_cache, make_cache
    from helium_mlx.kv_cache.rotating import RotatingKVCache
    from helium_mlx.model.helium import (
        HeliumForCausalLM,
        HeliumForSequenceClassification,
        HeliumForTokenClassification,
        HeliumModel,
    )
    from helium_mlx.model.loading import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
        AutoTokenizer,
        load,
    )
    from helium_mlx.model.processors import LogitsProcessor, LogitsProcessorList
    from helium_mlx.model.stopping import StoppingCriteria, StoppingCriteriaList
    from helium_mlx.progress import Progress
    from helium_mlx.publishing.upload import UploadReport, upload
    from helium_mlx.tokenizer.text_streamer import TextStreamer
    from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

_process.watch_forks()
if _process.is_command():
    # Before the imports that take a while.
    _process.end_quietly_on_interrupt()

# public name -> the module that it lives in
_HOMES = {
    "load": "model.loading",
    "generate": "generation.streaming",
    "stream_generate": "generation.streaming",
    "GenerationChunk": "generation.completion",
    "convert": "conversion.conversion",
    "ConversionReport": "conversion.conversion",
    "compare": "comparison.comparison",
    "ComparisonReport": "comparison.report",
    "evaluate": "evaluation.running",
    "EvaluationReport": "evaluation.report",
    "export": "bundle.exporting",
    "BundleRunner": "bundle.runner",
    "ExportReport": "bundle.exporting",
    "upload": "publishing.upload",
    "UploadReport": "publishing.upload",
    "score": "generation.scoring",
    "Score": "generation.scoring",
    "HeliumEngine": "engine.engine",
    "EngineStream": "engine.stream",
    "EngineCompletion": "engine.stream",
    "SuggestedWord": "engine.suggestions",
    "Suggestion": "engine.suggestions",
    "Suggestions": "engine.suggestions",
    "SuggestionStream": "engine.suggestions",
    "GenerationConfig": "checkpoint.generation_config",
    "LogitsProcessor": "model.processors",
    "LogitsProcessorList": "model.processors",
    "StoppingCriteria": "model.stopping",
    "StoppingCriteriaList": "model.stopping",
    "Progress": "progress",
    "TextStreamer": "tokenizer.text_streamer",
    "HeliumConfig": "checkpoint.config",
    "HeliumModel": "model.helium",
    "HeliumForCausalLM": "model.helium",
    "HeliumForSequenceClassification": "model.helium",
    "HeliumForTokenClassification": "model.helium",
    "HeliumTokenizer": "tokenizer.tokenizer",
    "AutoConfig": "model.loading",
    "AutoModel": "model.loading",
    "AutoModelForCausalLM": "model.loading",
    "AutoModelForSequenceClassification": "model.loading",
    "AutoModelForTokenClassification": "model.loading",
    "AutoTokenizer": "model.loading",
    "KVCache": "kv_cache.cache",
    "QuantizedKVCache": "kv_cache.cache",
    "RotatingKVCache": "kv_cache.rotating",
    "make_cache": "kv_cache.make",
    "copy_cache": "kv_cache.make",
    "PromptCache": "generation.prompt_cache",
    "load_cache": "kv_cache.disk",
    "save_cache": "kv_cache.disk",
    "HeliumError": "errors",
    "KeywordError": "errors",
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
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoTokenizer",
    "BundleError",
    "BundleRunner",
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
    "EvaluationReport",
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
    "KeywordError",
    "LogitsProcessor",
    "LogitsProcessorList",
    "OptionError",
    "Progress",
    "PromptCache",
    "QuantizationError",
    "QuantizedKVCache",
    "RotatingKVCache",
    "Score",
    "StoppingCriteria",
    "StoppingCriteriaList",
    "SuggestedWord",
    "Suggestion",
    "SuggestionStream",
    "Suggestions",
    "TextStreamer",
    "TokenizerError",
    "UploadError",
    "UploadReport",
    "UsageError",
    "compare",
    "convert",
    "copy_cache",
    "evaluate",
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
    if isinstance(value, FunctionType):
        from helium_mlx.option_values import with_known_keywords

        value = with_known_keywords(value)
        # Where it is found again, by pickle too.
        value.__module__ = __name__
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


sys.modules[__name__].__class__ = _Package
