"""mlx-lm's models under our class of lm-eval: the same answers as our own models of the same checkpoint."""

from pathlib import Path

import pytest
from evaluated_checkpoints import CONTEXT, TEXTS, TOLERANCE, checkpoints, instances, requests
from lm_eval.api.registry import get_model
from processes import run_code

import helium_mlx
from helium_mlx.errors import GenerationError, UsageError
from helium_mlx.evaluation.language_model import HeliumLM

pytest.importorskip("mlx_lm")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[HeliumLM, HeliumLM]:
    """A random Llama, opened here and by mlx-lm, which reads what `convert` writes."""
    folder = tmp_path_factory.mktemp("models")
    directory = str(folder / "converted")
    helium_mlx.convert(str(checkpoints(folder)["llama"]), directory, dtype="float32")
    return HeliumLM(directory, dtype="float32"), HeliumLM(f"mlx-lm:{directory}", dtype="float32")


def test_mlx_lm_scores_as_we_do(pair: tuple[HeliumLM, HeliumLM]) -> None:
    ours, theirs = pair
    asked = requests()["loglikelihood"]
    for request, a, b in zip(asked, ours.loglikelihood(asked), theirs.loglikelihood(asked), strict=True):
        assert a[1] == b[1], request.args
        assert a[0] == pytest.approx(b[0], abs=TOLERANCE), request.args


def test_mlx_lm_completes_as_we_do(pair: tuple[HeliumLM, HeliumLM]) -> None:
    ours, theirs = pair
    asked = requests()["generate_until"]
    assert ours.generate_until(asked) == theirs.generate_until(asked)


def test_mlx_lm_rolls_as_we_do(pair: tuple[HeliumLM, HeliumLM]) -> None:
    ours, theirs = pair
    asked = instances("loglikelihood_rolling", [(text,) for text in TEXTS])
    assert ours.loglikelihood_rolling(asked) == pytest.approx(theirs.loglikelihood_rolling(asked), abs=1e-3)


def test_both_say_what_they_are(pair: tuple[HeliumLM, HeliumLM]) -> None:
    for lm, program in zip(pair, ("helium_mlx", "mlx-lm"), strict=True):
        info = lm.get_model_info()
        assert (info["model_program"], info["model_dtype"], info["max_length"]) == (program, "float32", CONTEXT)
        assert "model.safetensors" in lm.model.hashes


def test_lm_eval_knows_our_class() -> None:
    assert get_model("helium_mlx") is HeliumLM


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"do_sample": True, "temperature": 0.7}, "draws its answers"),
        ({"num_beams": 4}, "generation_kwargs have num_beams"),
        ({"max_gen_toks": CONTEXT}, "must be less than the context"),
    ],
)
def test_completions_that_cannot_be_asked_for_are_refused(
    pair: tuple[HeliumLM, HeliumLM], options: dict[str, object], said: str
) -> None:
    with pytest.raises(GenerationError, match=said):
        pair[0].generate_until(instances("generate_until", [("Once", {"until": ["."], **options})]))


def test_a_continuation_without_tokens_is_refused(pair: tuple[HeliumLM, HeliumLM]) -> None:
    with pytest.raises(GenerationError, match="without tokens"):
        pair[0].loglikelihood(instances("loglikelihood", [("Once upon", "")]))


def test_devices_are_not_an_option() -> None:
    with pytest.raises(UsageError, match="device"):
        HeliumLM("demo", device="cuda:0")


def test_an_evaluation_needs_neither_torch_nor_transformers() -> None:
    code = """
import sys, helium_mlx
helium_mlx.evaluate("demo", tasks=["arc_easy", "mkqa_de"], limit=1, num_fewshot=0, data_dir=sys.argv[1])
print([name for name in ("torch", "transformers", "mlx_lm", "matplotlib") if name in sys.modules])
"""
    data = Path(__file__).parent / "data"
    assert run_code(code, data, check=True).stdout.strip() == "[]"
