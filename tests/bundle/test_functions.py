"""Functions equal the model at every length, offset and configuration; called as hosts call them, from files."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import cast

import mlx.core as mx
import pytest
from bundle_samples import write_text_checkpoint
from measures import relative_error
from tiny_checkpoints import CASES, CaseLoader, write_checkpoint

from helium_mlx.bundle.exporting import model_facts
from helium_mlx.bundle.functions import BundleFunction, FunctionShape, bundled_weights, capacities, function_shapes
from helium_mlx.conversion.conversion import convert
from helium_mlx.diagnostics.selfcheck_cases import ROPE_TYPES
from helium_mlx.kv_cache.make import make_cache
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.model.loading import load_model

CAPACITY, LENGTH = 24, 8
Function = Callable[..., Sequence[mx.array]]


def exported(
    model: HeliumForCausalLM, path: Path, *, length: int, capacity: int = CAPACITY, attended: int | None = None
) -> Function:
    """The function of a file, with the weights put in; of a single token, with positions and mask for an offset."""
    shape, weights = FunctionShape(length, capacity, attended or capacity), bundled_weights(model)
    inputs = [spec.zeros() for spec in model_facts(model).inputs(shape)]
    BundleFunction(model, shape).write(path, inputs)
    function = mx.import_function(str(path))
    assert callable(function)
    if length > 1:
        return lambda *inputs: function(*inputs, *weights.values())

    def decode(token: int, offset: int, *caches: mx.array) -> Sequence[mx.array]:
        positions = mx.array([offset] * (model_facts(model).positions - 1) + [0], dtype=mx.int32)
        seen = mx.arange(shape.attended) <= offset
        return function(mx.array([token], dtype=mx.uint32), positions, seen, *caches, *weights.values())

    return decode


def ids(*tokens: int) -> mx.array:
    return mx.array([tokens], dtype=mx.int32)


def number(value: int) -> mx.array:
    return mx.array([value], dtype=mx.int32)


def tokens(count: int, first: int = 5) -> list[int]:
    return [(first + 7 * index) % 96 for index in range(count)]


def run_prefill(prefill: Function, caches: Sequence[mx.array], text: list[int], offset: int, filler: int = 0) -> list:
    padded = [*text, *[filler] * (LENGTH - len(text))]
    return list(prefill(mx.array(padded, dtype=mx.uint32), number(offset), number(len(text)), *caches))


@pytest.mark.parametrize("name", CASES)
def test_decoding_equals_the_model(load_case: CaseLoader, tmp_path: Path, name: str) -> None:
    model = load_case(name)
    decode = exported(model, tmp_path / "decode.mlxfn", length=1)
    cache, caches = make_cache(model), model_facts(model).empty_caches(CAPACITY)
    for offset, token in enumerate(tokens(CAPACITY)):
        expected = model.next_logits(ids(token), cache)
        logits, *caches = decode(token, offset, *caches)
        assert relative_error(logits, expected) < 1e-5


@pytest.mark.parametrize("name", ["helium-gqa-bias", "llama-mqa-tied"])
@pytest.mark.parametrize("count", range(1, LENGTH + 1))
def test_a_padded_prefill_equals_the_model_at_every_remainder(
    load_case: CaseLoader, tmp_path: Path, name: str, count: int
) -> None:
    model, text = load_case(name), tokens(LENGTH + count)
    prefill = exported(model, tmp_path / "prefill.mlxfn", length=LENGTH)
    _, *caches = run_prefill(prefill, model_facts(model).empty_caches(CAPACITY), text[:LENGTH], 0)
    logits, *_ = run_prefill(prefill, caches, text[LENGTH:], LENGTH)
    assert relative_error(logits, model.next_logits(ids(*text), make_cache(model))) < 1e-5


def test_what_follows_padding_does_not_see_it(load_case: CaseLoader, tmp_path: Path) -> None:
    model, text = load_case("helium-mha"), tokens(3)
    prefill = exported(model, tmp_path / "prefill.mlxfn", length=LENGTH)
    decode = exported(model, tmp_path / "decode.mlxfn", length=1)
    seen = []
    for filler in (0, 95):
        _, *caches = run_prefill(prefill, model_facts(model).empty_caches(CAPACITY), text, 0, filler)
        seen.append(decode(42, len(text), *caches)[0])
    assert mx.array_equal(*seen)


def test_a_last_prefill_may_end_where_the_capacity_does(load_case: CaseLoader, tmp_path: Path) -> None:
    model, text = load_case("helium-mha"), tokens(CAPACITY)
    prefill, caches = (
        exported(model, tmp_path / "prefill.mlxfn", length=LENGTH),
        model_facts(model).empty_caches(CAPACITY),
    )
    logits = mx.array(0)
    for offset in range(0, CAPACITY, LENGTH):
        logits, *caches = run_prefill(prefill, caches, text[offset : offset + LENGTH], offset)
    assert relative_error(logits, model.next_logits(ids(*text), make_cache(model))) < 1e-5


@pytest.mark.parametrize("family", ["helium", "llama"])
@pytest.mark.parametrize("rope_type", ROPE_TYPES)
def test_every_rope_type_equals_the_model_past_its_original_context(
    tmp_path: Path, rope_type: str, family: str
) -> None:
    # `dynamic` alone goes by max_position_embeddings, past which no bundle goes.
    parameters = {**ROPE_TYPES[rope_type], "rope_type": rope_type, "rope_theta": 1000.0}
    model = load_model(write_checkpoint(tmp_path, model_type=family, rope_parameters=parameters, num_hidden_layers=2))
    prefill = exported(model, tmp_path / "prefill.mlxfn", length=LENGTH)
    decode = exported(model, tmp_path / "decode.mlxfn", length=1)
    cache, caches, text = make_cache(model), model_facts(model).empty_caches(CAPACITY), tokens(5)
    expected = model.next_logits(ids(*text), cache)
    logits, *caches = run_prefill(prefill, caches, text, 0)
    for offset in range(5, CAPACITY):
        assert relative_error(logits, expected) < 1e-5
        expected = model.next_logits(ids(offset), cache)
        logits, *caches = decode(offset, offset, *caches)


@pytest.mark.parametrize(
    "options",
    [
        *({"q_bits": bits, "q_group_size": 32} for bits in (2, 3, 4, 5, 6, 8)),
        *({"q_mode": mode} for mode in ("mxfp4", "mxfp8", "nvfp4")),
    ],
)
def test_every_quantization_equals_the_model(tmp_path: Path, options: dict) -> None:
    source = write_text_checkpoint(tmp_path / "source", model_type="llama", num_key_value_heads=2, num_hidden_layers=2)
    convert(str(source), str(tmp_path / "quantized"), quantize=True, verify=False, **options)
    model = load_model(tmp_path / "quantized")
    prefill = exported(model, tmp_path / "prefill.mlxfn", length=LENGTH)
    decode = exported(model, tmp_path / "decode.mlxfn", length=1)
    cache, text = make_cache(model), tokens(7)
    expected = model.next_logits(ids(*text), cache)
    logits, *caches = run_prefill(prefill, model_facts(model).empty_caches(CAPACITY), text, 0)
    assert relative_error(logits, expected) < 1e-5
    logits, *_ = decode(9, 7, *caches)
    assert relative_error(logits, model.next_logits(ids(9), cache)) < 1e-5


def test_bfloat16_stays_within_its_rounding(tmp_path: Path) -> None:
    model = load_model(write_checkpoint(tmp_path), dtype="bfloat16")
    prefill, text = exported(model, tmp_path / "prefill.mlxfn", length=LENGTH), tokens(6)
    logits, *caches = run_prefill(prefill, model_facts(model).empty_caches(CAPACITY), text, 0)
    assert {array.dtype for array in caches} == {mx.bfloat16}
    assert relative_error(logits, model.next_logits(ids(*text), make_cache(model))) < 2e-2


def test_the_cache_is_updated_in_place(load_case: CaseLoader, tmp_path: Path) -> None:
    model, capacity = load_case("helium-mha"), 4096
    decode = exported(model, tmp_path / "decode.mlxfn", length=1, capacity=capacity)
    caches = model_facts(model).empty_caches(capacity)
    mx.eval(caches)
    one_layer, before = caches[0].nbytes, mx.get_active_memory()
    mx.reset_peak_memory()
    for offset in range(3):
        outputs = decode(7, offset, *caches)
        del caches
        logits, *caches = outputs
        del outputs
        mx.eval(logits, caches)
    assert mx.get_peak_memory() - before < one_layer


def test_no_weight_is_in_a_function_file(load_case: CaseLoader, tmp_path: Path) -> None:
    model = load_case("llama-gqa-bias")
    exported(model, tmp_path / "decode.mlxfn", length=1)
    data = (tmp_path / "decode.mlxfn").read_bytes()
    for name, tensor in model.tensors().items():
        values: object = mx.contiguous(tensor).view(mx.uint8)
        assert bytes(cast(bytes, values)) not in data, name


def test_exporting_leaves_the_model_as_it_was(load_case: CaseLoader, tmp_path: Path) -> None:
    model = load_case("helium-mha")
    before = dict(model.tensors())
    exported(model, tmp_path / "decode.mlxfn", length=1)
    assert all(model.tensors()[name] is tensor for name, tensor in before.items())


@pytest.mark.parametrize(
    ("context", "sizes"),
    [(4096, [512, 1024, 2048, 4096]), (3000, [512, 1024, 2048, 3000]), (513, [512, 513]), (512, [512]), (40, [40])],
)
def test_capacities_double_up_to_the_context(context: int, sizes: list[int]) -> None:
    assert capacities(context) == sizes


def test_each_capacity_has_functions_for_decoding_and_the_lengths_that_fit() -> None:
    shapes = [(shape.length, shape.capacity, shape.attended) for shape in function_shapes(600)]
    assert shapes == [
        (1, 512, 256), (1, 512, 512), (16, 512, 512), (128, 512, 512), (512, 512, 512),
        (1, 600, 600), (16, 600, 600), (128, 600, 600), (512, 600, 600),
    ]  # fmt: skip
    assert [shape.name for shape in function_shapes(40)] == ["decode_40", "prefill_16_40"]


@pytest.mark.parametrize("context", [40, 512, 3000, 4096, 5000])
def test_a_token_attends_to_256_places_more_than_are_filled_at_most(context: int) -> None:
    attended = sorted(shape.attended for shape in function_shapes(context) if shape.length == 1)
    assert attended[-1] == context
    assert all(after - before <= 256 for before, after in pairwise([0, *attended]))


def test_decoding_over_part_of_a_cache_equals_the_model(load_case: CaseLoader, tmp_path: Path) -> None:
    model = load_case("helium-gqa-bias")
    decode = exported(model, tmp_path / "decode.mlxfn", length=1, attended=9)
    cache, caches = make_cache(model), model_facts(model).empty_caches(CAPACITY)
    for offset, token in enumerate(tokens(9)):
        logits, *caches = decode(token, offset, *caches)
        assert relative_error(logits, model.next_logits(ids(token), cache)) < 1e-5
