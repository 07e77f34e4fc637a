"""Against live transformers, in float32; needs the extra `parity`. The stored half is `tests/test_reference.py`."""

import json
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

sys.path.insert(0, str(Path(__file__).parent.parent / "reference"))

import make_reference  # noqa: E402
from measures import relative_error  # noqa: E402
from tiny_checkpoints import CASES, LLAMA, write_checkpoint  # noqa: E402

import helium_mlx  # noqa: E402
from helium_mlx import HeliumTokenizer  # noqa: E402
from helium_mlx.checkpoint.config import ACTIVATION_NAMES  # noqa: E402
from helium_mlx.comparison.text import TEXTS_DIRECTORY  # noqa: E402
from helium_mlx.diagnostics.selfcheck_cases import ROPE_TYPES  # noqa: E402
from helium_mlx.files.hub import DEMO_DIRECTORY  # noqa: E402
from helium_mlx.model.loading import load_model  # noqa: E402

pytestmark = pytest.mark.parity

TOLERANCE = 1e-5
PROMPT = make_reference.TINY_PROMPT


def worst_error(directory: Path, prompt: list[int] = PROMPT, reference_directory: Path | None = None) -> float:
    """The larger relative error of logits and of any hidden state."""
    reference = make_reference.outputs(make_reference.load_reference(reference_directory or directory), prompt)
    output = load_model(directory, dtype="float32")(mx.array([prompt]), output_hidden_states=True)
    assert output.hidden_states is not None
    pairs = [(output.logits[0], reference["logits"])]
    pairs += [(ours[0], theirs) for ours, theirs in zip(output.hidden_states, reference["hidden_states"], strict=True)]
    return max(relative_error(ours, mx.array(theirs.numpy())) for ours, theirs in pairs)


@pytest.mark.parametrize("name", CASES)
def test_tiny_checkpoints(tmp_path: Path, name: str) -> None:
    assert worst_error(write_checkpoint(tmp_path, **CASES[name])) <= TOLERANCE


@pytest.mark.parametrize("hidden_act", sorted(ACTIVATION_NAMES))
def test_every_activation(tmp_path: Path, hidden_act: str) -> None:
    assert worst_error(write_checkpoint(tmp_path, hidden_act=hidden_act)) <= TOLERANCE


def test_the_activations_are_all_that_transformers_has() -> None:
    from transformers.activations import ACT2FN

    assert set(ACT2FN) == set(ACTIVATION_NAMES)


@pytest.mark.parametrize("family", [{}, LLAMA], ids=["helium", "llama"])
@pytest.mark.parametrize("rope_type", ROPE_TYPES)
def test_every_rope_type_past_its_original_context(tmp_path: Path, family: dict[str, object], rope_type: str) -> None:
    parameters = {"rope_type": rope_type, "rope_theta": 1000.0, **ROPE_TYPES[rope_type]}
    directory = write_checkpoint(tmp_path, **family, rope_parameters=parameters, max_position_embeddings=32)
    assert worst_error(directory) <= TOLERANCE


def test_a_config_in_the_spelling_of_transformers_4(tmp_path: Path) -> None:
    directory = write_checkpoint(
        tmp_path / "v5", rope_parameters={"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}
    )
    old = write_checkpoint(tmp_path / "v4")
    values = json.loads((old / "config.json").read_text())
    del values["rope_parameters"], values["dtype"]
    values |= {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}, "torch_dtype": "float32"}
    (old / "config.json").write_text(json.dumps(values))
    assert worst_error(old, reference_directory=directory) <= TOLERANCE
    assert worst_error(old) <= TOLERANCE


@pytest.mark.parametrize("language", make_reference.DEMO_PROMPTS)
def test_the_demo(demo: tuple[object, helium_mlx.HeliumTokenizer], language: str) -> None:
    prompt = demo[1].encode(make_reference.DEMO_PROMPTS[language])
    assert worst_error(DEMO_DIRECTORY, prompt) <= TOLERANCE


def test_greedy_text_of_the_demo_for_200_tokens() -> None:
    reference = make_reference.load_reference(DEMO_DIRECTORY)
    model, tokenizer = helium_mlx.load("demo", dtype="float32")
    for text in make_reference.DEMO_PROMPTS.values():
        prompt = tokenizer.encode(text)
        chunks = helium_mlx.stream_generate(model, tokenizer, prompt, max_tokens=200, ignore_eos=True)
        assert [chunk.token for chunk in chunks] == make_reference.greedy(reference, prompt).tolist()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_padded_row_is_finite_and_near_in_every_dtype_however_large_the_weights(tmp_path: Path, dtype: str) -> None:
    padding = [[0] * 10 + [1] * 2, [1] * 12]
    ids, positions = [[3] * 10 + PROMPT[:2], PROMPT[:12]], [[0] * 10 + [0, 1], [*range(12)]]
    inputs = {"input_ids": ids, "attention_mask": padding, "position_ids": positions}
    # transformers' default attention: what it computes step by step overflows, too.
    reference = transformers.AutoModelForCausalLM.from_pretrained(write_checkpoint(tmp_path / "plain"))
    generator = torch.Generator().manual_seed(0)
    for name, weight in reference.named_parameters():
        if weight.ndim > 1:
            weight.data.copy_(torch.randn(weight.shape, generator=generator) * 0.6)
        if name.endswith("k_proj.weight"):
            # A token's score with itself is far below 0.
            weight.data.copy_(-reference.get_parameter(name.replace("k_proj", "q_proj")).data)
    reference = reference.eval().to(getattr(torch, dtype))
    reference.save_pretrained(tmp_path / "heavy")
    with torch.no_grad():
        expected = reference(**{name: torch.tensor(values) for name, values in inputs.items()}).logits.float().numpy()
    logits = load_model(tmp_path / "heavy", dtype=dtype)(mx.array(ids), mx.array(padding), mx.array(positions)).logits
    for row, first in ((0, 10), (1, 0)):
        error = relative_error(logits[row, first:], mx.array(expected[row, first:]))
        assert error < {"float32": 1e-5, "float16": 0.02, "bfloat16": 0.1}[dtype]


def test_transformers_opens_what_we_convert(tmp_path: Path) -> None:
    helium_mlx.convert("demo", str(tmp_path / "x"))
    prompt = [1, *range(300, 340)]
    ours, source = (
        make_reference.outputs(make_reference.load_reference(path), prompt)["logits"]
        for path in (tmp_path / "x", DEMO_DIRECTORY)
    )
    assert torch.equal(ours, source)


def test_our_error_is_no_larger_than_float32s_own(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, **CASES["helium-mha"])
    exact, rounded = (
        make_reference.outputs(make_reference.load_reference(directory, dtype), PROMPT)["logits"]
        for dtype in (torch.float64, torch.float32)
    )
    own = ((rounded - exact).abs().max() / exact.abs().max()).item()
    ours = load_model(directory)(mx.array([PROMPT])).logits[0]
    # mlx has no float64 arrays to compare with everywhere: round the exact one, its error is far below.
    assert relative_error(ours, mx.array(exact.float().numpy())) <= max(3 * own, 1e-6)


def test_over_the_whole_context_our_error_is_float32s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = (path.read_text(encoding="utf-8") for path in sorted((TEXTS_DIRECTORY / "stories").glob("*.txt")))
    prompt = HeliumTokenizer.from_pretrained(DEMO_DIRECTORY).encode("\n".join(texts))[:4095]
    assert len(prompt) == 4095
    rounded = make_reference.load_reference(DEMO_DIRECTORY)
    exact = make_reference.load_reference(DEMO_DIRECTORY, torch.float64)
    head_dim, theta = exact.config.head_dim, exact.config.rope_parameters["rope_theta"]

    def angles(x: object, position_ids: Any) -> tuple[Any, Any]:  # noqa: ANN401
        # transformers rounds them to float32 whatever the model's dtype, and that is most of the error.
        frequencies = position_ids[..., None].double() * theta ** -(torch.arange(0, head_dim, 2).double() / head_dim)
        both = torch.cat((frequencies, frequencies), dim=-1)
        return both.cos(), both.sin()

    monkeypatch.setattr(exact.model.rotary_emb, "forward", angles)
    truth, theirs = (mx.array(make_reference.outputs(m, prompt)["logits"].float().numpy()) for m in (exact, rounded))
    ours = load_model(DEMO_DIRECTORY, dtype="float32")(mx.array([prompt])).logits[0]
    assert relative_error(ours, theirs) < 1e-4
    assert relative_error(ours, truth) < 1.5 * relative_error(theirs, truth)
