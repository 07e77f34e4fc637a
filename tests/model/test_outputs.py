from dataclasses import fields

import mlx.core as mx
import pytest
from tiny_checkpoints import config_values

from helium_mlx.checkpoint.config import HeliumConfig
from helium_mlx.kv_cache.cache import KVCache
from helium_mlx.model.helium import (
    HeliumForCausalLM,
    HeliumForSequenceClassification,
    HeliumForTokenClassification,
    HeliumModel,
)
from helium_mlx.model.outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    ModelOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)

IDS = mx.array([[1, 5, 6, 7]])
HEADS = {
    HeliumModel: BaseModelOutputWithPast,
    HeliumForCausalLM: CausalLMOutputWithPast,
    HeliumForSequenceClassification: SequenceClassifierOutputWithPast,
    HeliumForTokenClassification: TokenClassifierOutput,
}
WITH_LABELS = {
    HeliumForCausalLM: IDS,
    HeliumForSequenceClassification: mx.array([1]),
    HeliumForTokenClassification: IDS % 2,
}
LAST = ["hidden_states", "attentions"]


def config(**overrides: object) -> HeliumConfig:
    return HeliumConfig.from_dict(config_values(num_hidden_layers=2, **overrides))


def test_fields_that_are_none_are_left_out() -> None:
    output = CausalLMOutputWithPast(logits=IDS, attentions=(IDS,))
    assert output.loss is None
    assert output.keys() == list(output) == ["logits", "attentions"]
    assert output.values() == [output.logits, output.attentions]
    assert output.items() == [("logits", output.logits), ("attentions", output.attentions)]
    assert output.to_tuple() == (output.logits, output.attentions)
    assert len(output) == 2
    assert "logits" in output
    assert "loss" not in output


def test_an_output_reads_as_a_tuple_and_as_a_mapping() -> None:
    output = CausalLMOutputWithPast(loss=mx.array(1.0), logits=IDS)
    assert output[0] is output["loss"] is output.loss
    assert output[1] is output[-1] is output["logits"]
    assert output[:2] == (output.loss, output.logits)
    assert dict(output.items()) == {"loss": output.loss, "logits": output.logits}
    assert (lambda **names: sorted(names))(**output) == ["logits", "loss"]  # pyright: ignore[reportCallIssue]
    with pytest.raises(KeyError):
        output["attentions"]
    with pytest.raises(IndexError):
        output[2]


@pytest.mark.parametrize("head", HEADS)
def test_each_model_returns_transformers_class(head: type[HeliumModel]) -> None:
    output = head(config())(IDS)
    assert type(output) is HEADS[head]
    first = "last_hidden_state" if head is HeliumModel else "logits"
    cached = [] if head is HeliumForTokenClassification else ["past_key_values"]
    assert output.keys() == [first, *cached]


@pytest.mark.parametrize("head", WITH_LABELS)
def test_a_loss_comes_first(head: type[HeliumForCausalLM]) -> None:
    output = head(config())(IDS, labels=WITH_LABELS[head])
    assert output.keys()[:2] == ["loss", "logits"]
    assert output.loss is not None
    assert output.loss.shape == ()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("by_config", [True, False])
def test_return_dict_false_gives_a_tuple(head: type[HeliumModel], by_config: bool) -> None:
    model = head(config(return_dict=not by_config))
    model.eval()
    given = {} if by_config else {"return_dict": False}
    output: object = model(IDS, use_cache=False, output_hidden_states=True, **given)  # pyright: ignore
    assert isinstance(output, tuple)
    whole = model(IDS, use_cache=False, output_hidden_states=True, return_dict=True)
    assert isinstance(whole, ModelOutput)
    assert len(output) == len(whole) == 2
    assert mx.array_equal(output[0], whole[0])  # pyright: ignore[reportArgumentType]
    assert len(output[1]) == 3  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", LAST)
def test_hidden_states_and_attentions_are_given_on_demand(head: type[HeliumModel], name: str) -> None:
    flag = f"output_{name}"
    by_call, by_config = head(config())(IDS, **{flag: True}), head(config(**{flag: True}))(IDS)  # pyright: ignore
    refused = head(config(**{flag: True}))(IDS, **{flag: False})  # pyright: ignore
    other = LAST[1 - LAST.index(name)]
    for output in (by_call, by_config):
        assert len(getattr(output, name)) == (3 if name == "hidden_states" else 2)
        assert getattr(output, other) is None
    assert getattr(refused, name) is None


@pytest.mark.parametrize("head", [HeliumModel, HeliumForCausalLM, HeliumForSequenceClassification])
def test_a_cache_is_made_unless_refused(head: type[HeliumModel]) -> None:
    made = head(config())(IDS).past_key_values
    assert made is not None
    assert [cache.offset for cache in made] == [4, 4]
    assert head(config())(IDS, use_cache=False).past_key_values is None
    assert head(config(use_cache=False))(IDS).past_key_values is None
    assert head(config(use_cache=False))(IDS, use_cache=True).past_key_values is not None


def test_a_cache_that_came_is_used_and_returned_whatever_use_cache_says() -> None:
    cache = [KVCache(), KVCache()]
    output = HeliumForCausalLM(config())(IDS, past_key_values=cache, use_cache=False)
    assert output.past_key_values is cache
    assert cache[0].offset == 4


def test_field_names_are_those_of_the_page() -> None:
    tail = ["past_key_values", *LAST]
    assert [f.name for f in fields(BaseModelOutputWithPast)] == ["last_hidden_state", *tail]
    assert [f.name for f in fields(CausalLMOutputWithPast)] == ["loss", "logits", *tail]
    assert [f.name for f in fields(SequenceClassifierOutputWithPast)] == ["loss", "logits", *tail]
    assert [f.name for f in fields(TokenClassifierOutput)] == ["loss", "logits", *LAST]


@pytest.mark.parametrize("keep", [mx.array([0, 3]), mx.array([-1]), mx.array([2, 2], mx.uint8)])
def test_logits_to_keep_takes_indices(keep: mx.array) -> None:
    model = HeliumForCausalLM(config())
    assert mx.allclose(model(IDS, logits_to_keep=keep).logits, model(IDS).logits[:, keep], atol=1e-6)


def test_embeddings_in_place_of_ids_give_the_same() -> None:
    model = HeliumForCausalLM(config())
    embeds = model.get_input_embeddings()(IDS)
    assert mx.array_equal(model(inputs_embeds=embeds).logits, model(IDS).logits)
