"""Against outputs that transformers computed and `tests/reference/make_reference.py` stored; needs no torch."""

from pathlib import Path

import mlx.core as mx
import pytest
from measures import relative_error
from tiny_checkpoints import CASES, CaseLoader

import helium_mlx
from helium_mlx.generation.sampling import Sampler, SamplingOptions
from helium_mlx.generation.streaming import Decoding, prefill
from helium_mlx.kv_cache.make import make_cache
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

TOLERANCE = 1e-5
LANGUAGES = ("en", "fr", "de", "it", "pt", "es")
TINY_PROMPT = mx.array([[1, *(7 + 13 * i % 89 for i in range(39))]])

Demo = tuple[HeliumForCausalLM, HeliumTokenizer]


def stored(name: str) -> dict[str, mx.array]:
    tensors = mx.load(str(Path(__file__).parents[1] / "reference" / name))
    assert isinstance(tensors, dict)
    return tensors


@pytest.mark.parametrize("name", CASES)
def test_tiny_checkpoints_give_transformers_outputs(load_case: CaseLoader, name: str) -> None:
    reference, output = stored("tiny.safetensors"), load_case(name)(TINY_PROMPT, output_hidden_states=True)
    assert relative_error(output.logits[0], reference[f"{name}.logits"]) <= TOLERANCE
    assert output.hidden_states is not None
    for ours, theirs in zip(output.hidden_states, reference[f"{name}.hidden_states"], strict=True):
        assert relative_error(ours[0], theirs) <= TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_greedy_ids_of_tiny_checkpoints_are_transformers_for_200_tokens(load_case: CaseLoader, name: str) -> None:
    model, reference = load_case(name), stored("tiny.safetensors")
    prompt: list[int] = TINY_PROMPT[0].tolist()  # pyright: ignore[reportAssignmentType]
    sampler = Sampler(SamplingOptions(), mx.array(prompt), vocab_size=model.config.vocab_size)
    decoding = Decoding(model, make_cache(model), sampler, 0)
    logits = prefill(model, prompt, decoding.cache, step_size=16)
    ids = [decoded.token for decoded in decoding.tokens(logits, 200)]
    assert ids == reference[f"{name}.greedy"].tolist()
    assert len(set(ids)) > 1


@pytest.mark.parametrize("name", ["helium-mha", "llama-mha"])
def test_the_other_pairing_would_be_seen(load_case: CaseLoader, name: str) -> None:
    model, reference = load_case(name), stored("tiny.safetensors")
    rope = model.model._rope
    rope.interleaved = not rope.interleaved
    try:
        assert relative_error(model(TINY_PROMPT).logits[0], reference[f"{name}.logits"]) > 1000 * TOLERANCE
    finally:
        rope.interleaved = not rope.interleaved


def test_another_eps_would_be_seen(load_case: CaseLoader) -> None:
    model, reference = load_case("helium-mha"), stored("tiny.safetensors")
    norms = [norm for layer in model.model.layers for norm in (layer.input_layernorm, layer.post_attention_layernorm)]
    eps = norms[0].eps
    try:
        for norm in norms:
            norm.eps = 1e-8
        assert relative_error(model(TINY_PROMPT).logits[0], reference["helium-mha.logits"]) > 100 * TOLERANCE
    finally:
        for norm in norms:
            norm.eps = eps


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_demo_gives_transformers_outputs(demo: Demo, language: str) -> None:
    reference = stored("demo.safetensors")
    output = demo[0](reference[f"{language}.prompt"][None], output_hidden_states=True)
    assert relative_error(output.logits[0], reference[f"{language}.logits"]) <= TOLERANCE
    assert output.hidden_states is not None
    for ours, theirs in zip(output.hidden_states, reference[f"{language}.hidden_states"], strict=True):
        assert relative_error(ours[0], theirs) <= TOLERANCE


@pytest.mark.parametrize("language", LANGUAGES)
def test_greedy_text_is_transformers_for_200_tokens(demo: Demo, language: str) -> None:
    reference = stored("demo.safetensors")
    prompt: list[int] = reference[f"{language}.prompt"].tolist()  # pyright: ignore[reportAssignmentType]
    chunks = helium_mlx.stream_generate(*demo, prompt, max_tokens=200, ignore_eos=True)
    assert [chunk.token for chunk in chunks] == reference[f"{language}.greedy"].tolist()
