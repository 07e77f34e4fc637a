"""The three snippets of transformers' Helium page, run here with their imports, their checkpoint and "pt" changed."""

import doctest
import re

import mlx.core as mx
import pytest

import helium_mlx
from helium_mlx import AutoTokenizer, HeliumForCausalLM, HeliumTokenizer
from helium_mlx.errors import ArgumentError, TokenizerError

# huggingface.co/docs/transformers/model_doc/helium, v5.0.0rc1: usage, HeliumConfig, HeliumForCausalLM.forward.
SNIPPETS = {
    "usage": """
>>> from transformers import AutoModelForCausalLM, AutoTokenizer

>>> model = AutoModelForCausalLM.from_pretrained("kyutai/helium-1-preview-2b", device_map="auto")
>>> tokenizer = AutoTokenizer.from_pretrained("kyutai/helium-1-preview-2b")

>>> prompt = "Give me a short introduction to large language model."

>>> model_inputs = tokenizer(prompt, return_tensors="pt").to(model.device)

>>> generated_ids = model.generate(model_inputs.input_ids, max_new_tokens=512, do_sample=True)

>>> generated_ids = [output_ids[len(input_ids):] for input_ids, output_ids in zip(model_inputs.input_ids, generated_ids)]

>>> response = tokenizer.batch_decode(generated_ids, skip_special_tokens=True)[0]
""",  # noqa: E501
    "config": """
>>> from transformers import HeliumModel, HeliumConfig
>>> # Initializing a Helium 2b style configuration
>>> configuration = HeliumConfig()
>>> # Initializing a model from the Helium 2b style configuration
>>> model = HeliumModel(configuration)
>>> # Accessing the model configuration
>>> configuration = model.config
""",
    "forward": """
>>> from transformers import AutoTokenizer, HeliumForCausalLM

>>> model = HeliumForCausalLM.from_pretrained("google/helium-7b")
>>> tokenizer = AutoTokenizer.from_pretrained("google/helium-7b")

>>> prompt = "What is your favorite condiment?"
>>> inputs = tokenizer(prompt, return_tensors="pt")

>>> # Generate
>>> generate_ids = model.generate(inputs.input_ids, max_length=30)
>>> tokenizer.batch_decode(generate_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)[0]
"What is your favorite condiment?"
""",
}


def run(snippet: str) -> dict[str, object]:
    """Run a snippet; return its variables, and the value of its last line as `_`."""
    moved = snippet.replace("from transformers import", "from helium_mlx import").replace('"pt"', '"mlx"')
    moved = re.sub(r"(from_pretrained\()\"[^\"]+\"", r'\1"demo"', moved)
    names: dict[str, object] = {}
    for example in doctest.DocTestParser().get_examples(moved):
        try:
            names["_"] = eval(example.source, names)
        except SyntaxError:
            exec(example.source, names)
    return names


def test_usage() -> None:
    names = run(SNIPPETS["usage"])
    assert isinstance(names["response"], str)
    assert len(names["response"]) > 10
    assert not names["response"].startswith("Give me")


def test_config() -> None:
    before = mx.get_active_memory()
    names = run(SNIPPETS["config"])
    assert names["configuration"].hidden_size == 2560  # pyright: ignore[reportAttributeAccessIssue]
    assert names["model"].num_parameters() > 2e9  # pyright: ignore[reportAttributeAccessIssue]
    # Two billion weights that nobody has looked at yet.
    assert mx.get_active_memory() - before < 1e9


def test_forward() -> None:
    text = run(SNIPPETS["forward"])["_"]
    assert isinstance(text, str)
    assert text.startswith("What is your favorite condiment?")


def test_the_auto_names_are_the_classes_themselves() -> None:
    assert helium_mlx.AutoModelForCausalLM is HeliumForCausalLM
    assert helium_mlx.AutoModelForSequenceClassification is helium_mlx.HeliumForSequenceClassification
    assert helium_mlx.AutoModelForTokenClassification is helium_mlx.HeliumForTokenClassification
    assert helium_mlx.AutoTokenizer is HeliumTokenizer
    assert helium_mlx.AutoModel is helium_mlx.HeliumModel
    assert helium_mlx.AutoConfig is helium_mlx.HeliumConfig


def test_what_transformers_would_do_and_mlx_does_not_is_refused() -> None:
    with pytest.raises(TokenizerError, match=r"return_tensors is 'pt'; expected None \(lists\) or 'mlx'"):
        AutoTokenizer.from_pretrained("demo")("x", return_tensors="pt")  # pyright: ignore[reportArgumentType, reportCallIssue]
    with pytest.raises(TokenizerError, match="clean_up_tokenization_spaces is True"):
        AutoTokenizer.from_pretrained("demo").batch_decode([[1]], clean_up_tokenization_spaces=True)
    with pytest.raises(ArgumentError, match="device_map is 'cuda:1'"):
        HeliumForCausalLM.from_pretrained("demo", device_map="cuda:1")


def test_a_tokenizer_that_is_nowhere_is_named() -> None:
    with pytest.raises(TokenizerError, match="no such directory"):
        AutoTokenizer.from_pretrained("./nowhere")
