"""A fork is known as one in which MLX cannot be used, where it cannot."""

import os

import pytest
from processes import run_code

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")

IN_A_FORK = """
import os, sys, warnings
warnings.simplefilter("ignore")
process = os.fork()
if process == 0:
    try:
        from helium_mlx import HeliumEngine
        with HeliumEngine("demo", dtype="float32") as engine:
            print(engine.stream("A", max_tokens=3).result().generated_tokens, flush=True)
    except Exception as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    os._exit(0)
os.waitpid(process, 0)
"""
REFUSED = (
    "EngineError: this process is a fork of one that had used MLX; MLX cannot be used after a fork: start the process "
    "with spawn, and make an engine there\n"
)
ONCE = "import helium_mlx, os, mlx.core as mx\nx = mx.zeros(3) + 1\nmx.eval(x)\n"
USES = {
    "an engine": "from helium_mlx import HeliumEngine\nHeliumEngine('demo', dtype='float32').close()",
    "load": "import helium_mlx\nhelium_mlx.load('demo')",
    "mlx": ONCE,
    "memory no longer counted": f"{ONCE}mx.reset_peak_memory()",
    "a fork between": f"{ONCE}if os.fork(): os.wait(), os._exit(0)",
}


@pytest.mark.parametrize("use", USES)
def test_an_engine_after_a_fork_of_what_had_used_mlx_is_refused_in_one_line(use: str) -> None:
    assert run_code(USES[use] + IN_A_FORK).stdout == REFUSED


def test_an_engine_after_a_fork_of_what_had_only_imported_it_works() -> None:
    assert run_code("from helium_mlx import HeliumEngine\nimport mlx.core" + IN_A_FORK).stdout == "3\n"


DOORS = {
    "load": ("load the model there", "helium_mlx.load('demo')"),
    "from_pretrained": ("load the model there", "helium_mlx.HeliumForCausalLM.from_pretrained('demo')"),
    "generate": ("generate there", "helium_mlx.generate(model, tokenizer, 'A', max_tokens=2)"),
    "a batch": ("generate there", "helium_mlx.generate(model, tokenizer, ['A', 'B'], max_tokens=2)"),
    "score": ("generate there", "helium_mlx.score(model, tokenizer, 'A')"),
    "model.generate": ("generate there", "model.generate([[1, 5]], max_new_tokens=2)"),
    "save_pretrained": ("save the model there", "model.save_pretrained('nowhere')"),
    "a forward pass": ("run the model there", "model(ids)"),
    "a loss": ("run the model there", "model(ids, labels=ids)"),
    "the decoder": ("run the model there", "model.model(ids)"),
    "a classifier": ("run the model there", "helium_mlx.HeliumForSequenceClassification(model.config)(ids)"),
    "a tagger": ("run the model there", "helium_mlx.HeliumForTokenClassification(model.config)(ids, labels=ids % 2)"),
    "save_cache": ("save the cache there", "helium_mlx.save_cache('nowhere', cache)"),
    "load_cache": ("load the cache there", "helium_mlx.load_cache('nowhere')"),
    "export": ("load the model there", "helium_mlx.export('demo', 'nowhere')"),
    "a bundle": ("run the bundle there", "helium_mlx.BundleRunner('nowhere')"),
    "compare": ("compare there", "helium_mlx.compare('demo', 'demo')"),
    "convert": ("convert there", "helium_mlx.convert('demo', 'nowhere')"),
}


@pytest.mark.parametrize("door", DOORS)
def test_after_a_fork_nothing_waits_forever(door: str) -> None:
    remedy, call = DOORS[door]
    code = f"""
import os, warnings, helium_mlx
warnings.simplefilter("ignore")
import mlx.core as mx
model, tokenizer = helium_mlx.load("demo")
ids, cache = mx.array([[1, 5]]), helium_mlx.make_cache(model)
process = os.fork()
if process == 0:
    try:
        {call}
    except helium_mlx.HeliumError as error:
        print(error, flush=True)
    os._exit(0)
os.waitpid(process, 0)
"""
    assert run_code(code).stdout == (
        "this process is a fork of one that had used MLX; MLX cannot be used after a fork: start the process with "
        f"spawn, and {remedy}\n"
    )
