import pytest
from processes import run_code

import helium_mlx

HEAVY = ("transformers", "torch", "mlx_lm", "numpy", "jinja2", "lm_eval", "datasets", "sacrebleu")


def run(code: str) -> str:
    return run_code(code, check=True).stdout.strip()


def test_every_public_name_is_there() -> None:
    assert sorted(helium_mlx.__all__) == helium_mlx.__all__
    for name in helium_mlx.__all__:
        assert getattr(helium_mlx, name) is not None
        assert name in dir(helium_mlx)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        helium_mlx.nonsense  # noqa: B018


def test_importing_the_package_loads_next_to_nothing() -> None:
    code = """
import sys
before = set(sys.modules)
import collections.abc, contextlib, functools, importlib, re, types, typing  # what a bare Python brings in anyway
bare = set(sys.modules)
import helium_mlx
print(sorted(set(sys.modules) - bare))
"""
    assert run(code) == "['helium_mlx', 'helium_mlx.process', 'helium_mlx.version']"


def test_a_completion_of_a_local_checkpoint_loads_nothing_that_it_does_not_use() -> None:
    code = f"""
import sys, helium_mlx
model, tokenizer = helium_mlx.load("demo")
helium_mlx.generate(model, tokenizer, "Once", max_tokens=2)
unused = ("huggingface_hub", "sentencepiece", "yaml", "asyncio", "ctypes", "shutil", "tempfile", "html", "_hashlib")
print([name for name in (*unused, *{HEAVY!r}) if name in sys.modules])
print([name for name in sys.modules if name.startswith("helium_mlx.") and name.split(".")[1] in (
    "conversion", "publishing", "model_card", "evaluation", "comparison", "diagnostics", "engine", "bundle",
    "quantization")])
"""
    assert run(code) == "[]\n[]"


@pytest.mark.parametrize("name", ["generate", "convert", "compare", "evaluate", "upload", "export"])
@pytest.mark.parametrize(
    "first",
    [
        "pass",
        "import helium_mlx.{name}",
        "from helium_mlx.{name} import main",
        "import importlib; importlib.import_module('helium_mlx.{name}')",
        "helium_mlx.{name}; import helium_mlx.{name}",
    ],
)
def test_a_function_wins_over_the_module_of_its_name(name: str, first: str) -> None:
    code = f"import helium_mlx, inspect\n{first.format(name=name)}\nfrom helium_mlx import {name}\n"
    code += f"print(inspect.isfunction(helium_mlx.{name}), inspect.isfunction({name}), helium_mlx.{name}.__name__)"
    assert run(code) == f"True True {name}"


@pytest.mark.parametrize("command", ["generate", "convert"])
def test_help_loads_nothing_heavy(command: str) -> None:
    code = f"""
import sys
from helium_mlx.{command} import build_parser
build_parser().format_help()
print([m for m in sys.modules if m.startswith(("tokenizers", "huggingface", *{HEAVY!r}))])
"""
    assert run(code) == "[]"


def test_a_whole_generation_loads_nothing_heavy() -> None:
    code = f"""
import sys
from helium_mlx.generate import main
status = main(["--model", "demo", "--prompt", "Bonjour", "--max-tokens", "3"])
print(status, [name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""
    result = run_code(code, check=True)
    assert result.stderr.strip().splitlines()[-1] == "0 []"


def test_a_whole_generation_from_python_loads_nothing_heavy() -> None:
    code = f"""
import sys, helium_mlx
model, tokenizer = helium_mlx.load("demo")
helium_mlx.generate(model, tokenizer, "Bonjour", max_tokens=3)
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    assert run(code) == "[]"
