from collections.abc import Callable, Iterator

import mlx.core as mx
import pytest

from helium_mlx.diagnostics import graph_size
from helium_mlx.diagnostics.graph_size import operations, recorded_graphs, step_operations
from helium_mlx.model.helium import HeliumForCausalLM


def evaluated(*shape: int) -> mx.array:
    x = mx.random.normal(shape)
    mx.eval(x)
    return x


def test_operations_are_counted_by_name() -> None:
    x, w = evaluated(2, 2), evaluated(2, 2)
    y = mx.sin(x) @ w
    assert operations(mx.cos(y) + mx.cos(mx.sin(y))) == {"Sin": 2, "Matmul": 1, "Cos": 2, "Add": 1}


def test_an_operation_with_two_results_or_two_readers_counts_once() -> None:
    halves = mx.split(mx.sin(evaluated(4)), 2)
    assert operations(*halves, halves[0] + halves[1]) == {"Sin": 1, "Split": 1, "Add": 1}


def test_what_is_there_already_counts_nothing() -> None:
    y = mx.sin(evaluated(2))
    assert operations(mx.cos(y)).total() == 2
    mx.eval(y)
    assert operations(mx.cos(y)) == {"Cos": 1}
    assert operations(y).total() == 0


def test_counting_evaluates_nothing() -> None:
    y = mx.sin(evaluated(1000, 1000))
    before = mx.get_active_memory()
    operations(y)
    assert mx.get_active_memory() == before
    assert operations(y).total() == 1


def test_a_step_is_the_graph_seen_most_often() -> None:
    def decode() -> Iterator[mx.array]:
        state = evaluated(2)
        for step in range(9):
            # The first graph and the fifth are larger, as those of a prompt and of a growing cache are.
            state = mx.sin(mx.exp(state)) if step in (0, 4) else mx.sin(state)
            mx.async_eval([state, {"more": state + state}])
            yield state

    assert step_operations(decode()) == {"Sin": 1, "Add": 1}


def test_the_loop_computes_what_it_would() -> None:
    with recorded_graphs() as graphs:
        y = mx.sin(mx.array([1.0]))
        mx.async_eval(y)
    assert len(graphs) == 1
    assert y.item() == mx.sin(mx.array([1.0])).item()


def test_evaluation_is_itself_again_afterwards() -> None:
    evaluate = mx.async_eval
    with pytest.raises(ZeroDivisionError), recorded_graphs():
        raise ZeroDivisionError
    assert mx.async_eval is evaluate


def test_a_step_of_ours_has_one_product_a_weight_and_two_a_layer_of_attention(
    load_case: Callable[[str], HeliumForCausalLM],
) -> None:
    from helium_mlx.generation.sampling import Sampler, SamplingOptions
    from helium_mlx.generation.streaming import Decoding, prefill
    from helium_mlx.kv_cache.make import make_cache

    model = load_case("helium-mha")
    cache, prompt = make_cache(model), [1, 5, 6]
    sampler = Sampler(SamplingOptions(), mx.array(prompt), vocab_size=model.config.vocab_size)
    decoding = Decoding(model, cache, sampler, 0)
    step = graph_size.step_operations(decoding.tokens(prefill(model, prompt, cache, step_size=8), 12))
    layers = model.config.num_hidden_layers
    attention = 2 if "ScaledDotProductAttention" not in step else 0
    # Two of a layer's four add the residual stream.
    assert step["Matmul"] == layers * (2 + attention) + 1
    assert step["AddMM"] == layers * 2
    assert step["SliceUpdate"] == 2 * layers
    assert step["ArgReduce"] == 1
