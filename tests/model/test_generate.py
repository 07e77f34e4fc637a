"""`model.generate`. `reference/generate.json` holds what transformers' own gives (see `make_generate_reference.py`)."""

import json
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import cast

import mlx.core as mx
import numpy as np
import pytest
from processes import run_code
from tiny_checkpoints import CaseLoader

import helium_mlx
from helium_mlx import GenerationConfig, HeliumForCausalLM, HeliumTokenizer
from helium_mlx.checkpoint.generation_config import NAMES
from helium_mlx.errors import ArgumentError, GenerationError, HeliumError, OptionError
from helium_mlx.files.hub import DEMO_DIRECTORY
from helium_mlx.kv_cache.make import make_cache
from helium_mlx.model.generate_options import IGNORED, REFUSED
from helium_mlx.model.generate_outputs import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput
from helium_mlx.model.processors import bias_sequences, penalize_repetition
from helium_mlx.model.temperature import tempered

# Options come from dicts, whose values have no common type.
generate = cast("Callable[..., mx.array]", HeliumForCausalLM.generate)

Demo = tuple[HeliumForCausalLM, HeliumTokenizer]
Rows = list[list[int]]

STORED = json.loads((Path(__file__).parents[1] / "reference" / "generate.json").read_text())
CASES = [name for name in STORED if name != "made with"]

PROMPT = [1, 20, 30, 20, 30, 20]
SHORT = [1, 20]
PADDED = mx.array([[3, 3, 3, 1, 9], [1, 4, 5, 6, 7]])
MASK = mx.array([[0, 0, 0, 1, 1], [1, 1, 1, 1, 1]])
TEXTS = ["Once upon a time", "Il était une fois", "Es war einmal ein kleiner Hund, der"]


@pytest.fixture
def model(load_case: CaseLoader) -> HeliumForCausalLM:
    return load_case("helium-mha")


def rows(array: mx.array) -> Rows:
    assert array.dtype == mx.int32
    return cast(Rows, array.tolist())


class Counted:
    """Counts a model's forward passes and the tokens in each."""

    def __init__(self, model: HeliumForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lengths: list[int] = []
        original = type(model.model).run

        def counting(module: object, h: mx.array, *rest: object, **named: object) -> object:
            self.lengths.append(h.shape[1])
            return original(module, h, *rest, **named)  # pyright: ignore[reportArgumentType]

        monkeypatch.setattr(type(model.model), "run", counting)


class Recorded:
    """A streamer that keeps what it is given."""

    def __init__(self) -> None:
        self.values: list[object] = []

    def put(self, value: mx.array) -> None:
        self.values.append(value.tolist())

    def end(self) -> None:
        self.values.append("end")


# --- transformers' ids


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", CASES)
def test_ids_are_those_of_transformers(model: HeliumForCausalLM, name: str) -> None:
    case = STORED[name]
    mask = None if case["mask"] is None else mx.array(case["mask"])
    assert rows(generate(model, mx.array(case["ids"]), attention_mask=mask, **case["options"])) == case["generated"]


def test_the_stored_cases_show_their_options() -> None:
    """What an option is stored for makes a difference to the ids."""
    generated = {name: STORED[name]["generated"] for name in CASES}
    plain = ("batch", "no eos")
    for name in CASES:
        if name not in ("one row", "without a cache", "mask inferred from pad ids", *plain):
            assert all(generated[name] != generated[other] for other in plain), name


def test_a_row_of_a_padded_batch_is_what_it_is_alone_and_what_stream_generate_gives(demo: Demo) -> None:
    model, tokenizer = demo
    encoding = tokenizer(TEXTS, padding=True, return_tensors="mlx")
    length = cast(mx.array, encoding.input_ids).shape[1]
    batch = rows(generate(model, **encoding, max_new_tokens=60))
    for text, row in zip(TEXTS, batch, strict=True):
        ids = tokenizer.encode(text)
        alone = rows(generate(model, mx.array([ids]), max_new_tokens=60))[0]
        streamed = [c.token for c in helium_mlx.stream_generate(model, tokenizer, text, max_tokens=60)]
        assert alone == ids + streamed
        ended = len(streamed)
        assert row[length : length + ended] == streamed
        assert set(row[length + ended :]) <= {tokenizer.pad_token_id}


def test_without_a_prompt_a_text_begins_with_bos(model: HeliumForCausalLM) -> None:
    assert rows(generate(model, max_new_tokens=5)) == rows(generate(model, mx.array([[1]]), max_new_tokens=5))


def test_input_ids_is_another_name_of_inputs(model: HeliumForCausalLM) -> None:
    ids = mx.array([PROMPT])
    assert rows(generate(model, input_ids=ids, max_new_tokens=5)) == rows(generate(model, ids, max_new_tokens=5))


# --- what is computed


def test_the_prompt_is_run_once_and_each_token_once(model: HeliumForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(model, monkeypatch)
    generate(model, PADDED, attention_mask=MASK, max_new_tokens=7, eos_token_id=None)
    assert counted.lengths == [5] + [1] * 6


def test_a_batch_that_ends_by_eos_computes_one_step_more(
    model: HeliumForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = STORED["ragged eos list"]
    counted = Counted(model, monkeypatch)
    generated = generate(model, mx.array(case["ids"]), attention_mask=mx.array(case["mask"]), **case["options"])
    new = generated.shape[1] - len(case["ids"][0])
    assert new < case["options"]["max_new_tokens"]
    assert len(counted.lengths) == 1 + new


def test_without_a_cache_everything_is_run_again(model: HeliumForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(model, monkeypatch)
    generate(model, PADDED, attention_mask=MASK, max_new_tokens=3, eos_token_id=None, use_cache=False)
    assert counted.lengths == [5, 6, 7]


def test_a_cache_is_continued_and_holds_all_but_the_last_token(
    model: HeliumForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    cold = rows(generate(model, PADDED, attention_mask=MASK, max_new_tokens=12, eos_token_id=None))
    cache = make_cache(model)
    options = {"attention_mask": MASK, "past_key_values": cache, "max_new_tokens": 4, "eos_token_id": None}
    first = generate(model, PADDED, **options)
    assert cache[0].offset == 8
    counted = Counted(model, monkeypatch)
    options |= {"attention_mask": mx.concatenate([MASK, mx.ones((2, 4), mx.int32)], axis=1), "max_new_tokens": 8}
    assert rows(generate(model, first, **options)) == cold
    assert counted.lengths == [1] * 8


# --- sampling


def expected_distribution(
    model: HeliumForCausalLM, options: dict[str, float], prompt: list[int] = SHORT
) -> list[float]:
    """Probabilities of the token after a prompt, by the definitions of temperature, top-k, top-p and min-p."""
    logits = cast(list[float], model(mx.array([prompt])).logits[0, -1].tolist())
    weights = [math.exp((value - max(logits)) / options.get("temperature", 1.0)) for value in logits]
    ranked = sorted(range(len(weights)), key=lambda token: -weights[token])
    ranked = ranked[: int(options.get("top_k", 50)) or None]
    total, kept, mass = sum(weights[token] for token in ranked), [], 0.0
    for token in ranked:
        if mass < options.get("top_p", 1.0) and weights[token] >= options.get("min_p", 0.0) * weights[ranked[0]]:
            kept.append(token)
        mass += weights[token] / total
    left = sum(weights[token] for token in kept)
    return [weights[token] / left if token in kept else 0.0 for token in range(len(weights))]


SAMPLED: dict[str, dict[str, float]] = {
    "defaults": {},
    "all": {"top_k": 0},
    "hot": {"top_k": 0, "temperature": 2.0},
    "cold": {"top_k": 0, "temperature": 0.5},
    "top-k": {"top_k": 5, "temperature": 1.5},
    "top-p": {"top_k": 0, "top_p": 0.7, "temperature": 1.5},
    "min-p": {"top_k": 0, "min_p": 0.15, "temperature": 1.5},
    "together": {"top_k": 12, "top_p": 0.9, "min_p": 0.05, "temperature": 1.8},
}


@pytest.mark.parametrize("name", SAMPLED)
def test_samples_are_distributed_as_the_options_say(model: HeliumForCausalLM, name: str) -> None:
    count = 2000
    generated = generate(
        model, mx.array([SHORT]), do_sample=True, max_new_tokens=1, num_return_sequences=count, seed=7, **SAMPLED[name]
    )
    require_distributed([row[-1] for row in rows(generated)], expected_distribution(model, SAMPLED[name]))


def require_distributed(tokens: list[int], probabilities: list[float]) -> None:
    """Fail if a chi-square test says that the tokens do not have these probabilities."""
    counts, count = Counter(tokens), len(tokens)
    expected = [count * probability for probability in probabilities]
    assert all(expected[token] > 0 for token in counts)
    # Rare tokens are counted together, so that the statistic is distributed as chi-square.
    common = [token for token in range(len(expected)) if expected[token] >= 8]
    pairs = [(counts[token], expected[token]) for token in common]
    pairs.append((count - sum(o for o, _ in pairs), count - sum(e for _, e in pairs)))
    statistic = sum((o - e) ** 2 / e for o, e in pairs if e > 1e-6)
    degrees = len(pairs) - 1
    assert statistic < degrees + 4 * math.sqrt(2 * degrees)


@pytest.mark.parametrize(
    "options", [{"top_p": 0.0}, {"top_p": 1e-300}, {"top_p": 1e-46}, {"temperature": 1e-300}, {"min_p": 1.0}], ids=str
)
def test_a_filter_that_leaves_one_token_leaves_the_most_probable(
    model: HeliumForCausalLM, options: dict[str, float]
) -> None:
    sampled = generate(model, mx.array([PROMPT]), max_new_tokens=6, do_sample=True, seed=3, **options)
    assert rows(sampled) == rows(generate(model, mx.array([PROMPT]), max_new_tokens=6))


@pytest.mark.parametrize("penalty", [1e-300, 1e-46, 1e46, 1e300])
def test_penalties_that_float32_cannot_hold_leave_scores_that_can_be_drawn_from(penalty: float) -> None:
    scores = penalize_repetition(penalty)(mx.array([[0, 2, 4]]), mx.array([[-30.0, -2.0, 0.0, 2.0, 30.0]]))
    assert mx.isfinite(tempered(scores, 1e-300)).all().item()


def test_steps_are_drawn_independently(model: HeliumForCausalLM) -> None:
    options = {"top_k": 0, "temperature": 1.5}
    generated = generate(
        model, mx.array([SHORT]), do_sample=True, max_new_tokens=2, num_return_sequences=4000, seed=1,
        eos_token_id=None, **options,
    )  # fmt: skip
    first = Counter(row[-2] for row in rows(generated)).most_common(1)[0][0]
    seconds = [row[-1] for row in rows(generated) if row[-2] == first]
    assert len(seconds) > 200
    require_distributed(seconds, expected_distribution(model, options, [*SHORT, first]))


def sampled(model: HeliumForCausalLM, seed: int | None, **options: object) -> Rows:
    return rows(
        generate(model, mx.array([PROMPT, PROMPT]), do_sample=True, max_new_tokens=12, seed=seed, top_k=0, **options)
    )


def test_a_seed_repeats_and_another_does_not(model: HeliumForCausalLM) -> None:
    assert sampled(model, 3) == sampled(model, 3)
    assert sampled(model, 3) != sampled(model, 4)
    assert sampled(model, None) != sampled(model, None)


def test_mlx_global_random_state_is_neither_used_nor_changed(model: HeliumForCausalLM) -> None:
    mx.random.seed(1)
    state = [array.tolist() for array in cast(list[mx.array], mx.random.state)]
    first = sampled(model, 3)
    assert [array.tolist() for array in cast(list[mx.array], mx.random.state)] == state
    mx.random.seed(2)
    assert sampled(model, 3) == first


def test_rows_of_one_prompt_are_drawn_apart_and_stand_together(model: HeliumForCausalLM) -> None:
    prompts = mx.array([[3, 1, 20], [1, 30, 40]])
    generated = generate(model, 
        prompts, attention_mask=mx.array([[0, 1, 1], [1, 1, 1]]), do_sample=True, top_k=0, max_new_tokens=8,
        num_return_sequences=3, seed=0,
    )  # fmt: skip
    assert [row[:3] for row in rows(generated)] == [[3, 1, 20]] * 3 + [[1, 30, 40]] * 3
    assert len({tuple(row[3:]) for row in rows(generated)}) == 6


# --- streamers and stop strings


def test_a_streamer_is_given_the_prompt_then_each_step_then_the_end(model: HeliumForCausalLM) -> None:
    case, streamer = STORED["ragged eos list"], Recorded()
    ids = mx.array(case["ids"])
    generate(model, ids, attention_mask=mx.array(case["mask"]), streamer=streamer, **case["options"])
    length = ids.shape[1]
    steps = [[row[at] for row in case["generated"]] for at in range(length, len(case["generated"][0]))]
    assert streamer.values == [case["ids"], *steps, "end"]


def test_a_stop_string_ends_a_row_with_the_token_that_completes_it(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = demo
    ids = mx.array([tokenizer.encode(TEXTS[0])])
    length = ids.shape[1]
    whole = rows(generate(model, ids, max_new_tokens=60, eos_token_id=None))[0]
    # Begins and ends inside of tokens.
    stop = tokenizer.decode(whole)[41:55]
    counted = Counted(model, monkeypatch)
    stopped = rows(
        generate(
            model, ids, max_new_tokens=60, eos_token_id=None, stop_strings=["not there", stop], tokenizer=tokenizer
        )
    )[0]
    assert stopped == whole[: len(stopped)]
    assert stop in tokenizer.decode(stopped)
    assert stop not in tokenizer.decode(stopped[:-1])
    assert len(counted.lengths) == len(stopped) - length


def test_a_stop_string_may_begin_in_the_prompt_but_not_end_there(demo: Demo) -> None:
    model, tokenizer = demo
    ids = mx.array([tokenizer.encode("Once upon a time")])
    plain = rows(generate(model, ids, max_new_tokens=8))[0]
    assert rows(generate(model, ids, max_new_tokens=8, stop_strings="upon a", tokenizer=tokenizer))[0] == plain
    first = tokenizer.token_bytes(plain[ids.shape[1]]).decode()
    stopped = generate(model, ids, max_new_tokens=8, stop_strings=f"a time{first}", tokenizer=tokenizer)
    assert rows(stopped)[0] == plain[: ids.shape[1] + 1]


def test_rows_that_a_stop_string_ended_are_padded_where_there_is_an_eos(demo: Demo) -> None:
    model, tokenizer = demo
    encoding = tokenizer(TEXTS, padding=True, return_tensors="mlx")
    options = {**encoding, "max_new_tokens": 30, "stop_strings": " a", "tokenizer": tokenizer}
    padded, going_on = rows(generate(model, **options)), rows(generate(model, **options, eos_token_id=None))
    assert any(row[-1] == tokenizer.pad_token_id for row in padded)
    assert all(row[-1] != tokenizer.pad_token_id for row in going_on)


# --- functions of the caller's


def test_a_processor_is_given_the_ids_and_scores_of_each_step_and_may_write_to_them(model: HeliumForCausalLM) -> None:
    given: list[list[int]] = []

    def only(ids: mx.array, scores: mx.array) -> mx.array:
        assert (ids.dtype, scores.dtype, scores.shape) == (mx.int32, mx.float32, (2, 96))
        given.append(cast("list[int]", ids[1].tolist()))
        scores[:, 40 + len(given)] = 1e9
        ids[:] = 0
        return scores

    generated = rows(generate(model, PADDED, attention_mask=MASK, max_new_tokens=3, logits_processor=[only, only]))
    assert [row[5:] for row in generated] == [[41, 42, 43]] * 2
    assert given == [generated[1][:5], generated[1][:6], generated[1][:7]]


def test_a_criterion_ends_the_rows_it_names_and_is_asked_once_a_step(model: HeliumForCausalLM) -> None:
    given: list[tuple[int, ...]] = []

    def second(ids: mx.array, scores: object) -> mx.array:
        given.append(ids.shape)
        return mx.array([False, True])

    options = {"attention_mask": MASK, "max_new_tokens": 4, "stopping_criteria": [second]}
    plain = rows(generate(model, PADDED, attention_mask=MASK, max_new_tokens=4))
    assert rows(generate(model, PADDED, **options)) == [plain[0], [*plain[1][:6], 3, 3, 3]]
    assert given == [(2, length) for length in range(6, 10)]
    options["stopping_criteria"] = [lambda ids, scores: ids.shape[1] == 7]
    assert rows(generate(model, PADDED, **options)) == [row[:7] for row in plain]


def test_classes_of_code_for_transformers_do(model: HeliumForCausalLM) -> None:
    class Only(helium_mlx.LogitsProcessor):
        def __call__(self, input_ids: mx.array, scores: mx.array) -> mx.array:
            return mx.where(mx.arange(scores.shape[-1]) == 30 + input_ids.shape[1], scores, -math.inf)

    class Long(helium_mlx.StoppingCriteria):
        def __call__(self, input_ids: mx.array, scores: object) -> bool:
            return input_ids.shape[1] >= 8

    processors, criteria = helium_mlx.LogitsProcessorList([Only()]), helium_mlx.StoppingCriteriaList([Long()])
    ids = generate(model, PADDED, attention_mask=MASK, logits_processor=processors, stopping_criteria=criteria)
    assert rows(ids)[0][5:] == [35, 36, 37]
    assert processors(ids, mx.zeros((2, 96)))[0, 38].item() == 0
    assert criteria(ids).tolist() == [True, True]
    for bare in (helium_mlx.LogitsProcessor(), helium_mlx.StoppingCriteria()):
        with pytest.raises(NotImplementedError):
            generate(model, PADDED, max_new_tokens=1, logits_processor=[bare])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_functions_are_called_for_no_token_that_is_not_returned(
    model: HeliumForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(model, monkeypatch)
    options = {"max_new_tokens": 9, "eos_token_id": 44, "attention_mask": MASK}
    generate(model, PADDED, **options, sequence_bias={(44,): 99.0})
    assert counted.lengths == [5, 1]
    counted.lengths.clear()
    generate(model, PADDED, **options, logits_processor=[bias_sequences({(44,): 99.0})])
    assert counted.lengths == [5]


def test_time_ends_all_rows_after_a_token(model: HeliumForCausalLM) -> None:
    assert generate(model, PADDED, attention_mask=MASK, max_new_tokens=50, max_time=0).shape == (2, 6)


def test_new_settings_are_saved_as_json_has_them(model: HeliumForCausalLM, tmp_path: Path) -> None:
    saved = GenerationConfig(sequence_bias={(5, 6): 2.0, (7,): -1.0}, suppress_tokens=[9]).to_dict()
    assert json.loads(json.dumps(saved))["sequence_bias"] == [[[5, 6], 2.0], [[7], -1.0]]
    ids, bias = mx.array([PROMPT]), {(20,): 30.0}
    expected = rows(generate(model, ids, max_new_tokens=3, sequence_bias=bias))
    assert expected[0][6:] == [20] * 3
    assert rows(generate(model, ids, max_new_tokens=3, sequence_bias=[[[20], 30.0]])) == expected


# --- what comes beside ids


def test_scores_and_logits_of_each_step_come_with_the_ids(model: HeliumForCausalLM) -> None:
    options = {"attention_mask": MASK, "max_new_tokens": 3, "eos_token_id": None, "repetition_penalty": 1.5}
    asked = dict.fromkeys(("output_scores", "output_logits", "output_attentions", "output_hidden_states"), True)
    output = cast(GenerateDecoderOnlyOutput, generate(model, PADDED, **options, return_dict_in_generate=True, **asked))
    ids = generate(model, PADDED, **options)
    assert rows(output.sequences) == rows(ids)
    assert [step.shape for step in output.scores or ()] == [(2, 96)] * 3
    assert mx.stack([mx.argmax(step, axis=-1) for step in output.scores or ()], axis=1).tolist() == ids[:, 5:].tolist()
    whole = model(ids[1:, :-1]).logits[0, 4:]
    assert mx.allclose(mx.stack([step[1] for step in output.logits or ()]), whole, atol=1e-4)
    assert [len(step) for step in output.hidden_states or ()] == [len(model.model.layers) + 1] * 3
    assert [step[0].shape[2:] for step in output.attentions or ()] == [(5, 5), (1, 6), (1, 7)]
    assert (output.past_key_values or [])[0].offset == 7
    bare = cast(GenerateDecoderOnlyOutput, generate(model, PADDED, **options, return_dict_in_generate=True))
    assert bare.keys() == ["sequences", "past_key_values"]


def test_the_scores_of_beams_are_sums_over_the_rows_they_came_by(model: HeliumForCausalLM) -> None:
    output = cast(
        GenerateBeamDecoderOnlyOutput,
        generate(
            model, PADDED, attention_mask=MASK, max_new_tokens=4, num_beams=3, num_return_sequences=2,
            length_penalty=0.0, eos_token_id=None, return_dict_in_generate=True, output_scores=True,
        ),
    )  # fmt: skip
    scores, indices = mx.stack(list(output.scores or ())), cast(mx.array, output.beam_indices)
    for row in range(4):
        sums = [scores[step, indices[row, step], output.sequences[row, 5 + step]] for step in range(4)]
        assert mx.allclose(mx.stack(sums).sum(), cast(mx.array, output.sequences_scores)[row], atol=1e-5)
    transitions = model.compute_transition_scores(output.sequences, output.scores or (), indices)
    assert mx.allclose(transitions.sum(axis=1), cast(mx.array, output.sequences_scores), atol=1e-5)
    for prompt in (0, 2):
        assert cast(mx.array, output.sequences_scores)[prompt] >= cast(mx.array, output.sequences_scores)[prompt + 1]


def test_beams_that_are_drawn_are_drawn_by_the_seed_and_are_probable(model: HeliumForCausalLM) -> None:
    options = {"max_new_tokens": 6, "num_beams": 3, "do_sample": True, "top_k": 0, "eos_token_id": None}
    drawn = [rows(generate(model, PADDED, attention_mask=MASK, seed=seed, **options)) for seed in (1, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2] or drawn[0] != drawn[3]


@pytest.mark.parametrize("kind", [{}, {"max_kv_size": 4}], ids=str)
def test_a_reordered_cache_goes_on_from_other_rows(model: HeliumForCausalLM, kind: dict[str, int]) -> None:
    ids, order = mx.array([[1, 5, 6], [1, 7, 8], [1, 9, 4]]), mx.array([2, 2, 0])
    cache, other = make_cache(model, **kind), make_cache(model, **kind)
    model(ids, past_key_values=cache)
    model(ids[order], past_key_values=other)
    for layer in cache:
        layer.reorder_cache(order)
    following = mx.array([[3], [4], [5]])
    logits = [model(following, past_key_values=entry).logits for entry in (cache, other)]
    assert mx.array_equal(logits[0], logits[1])


# --- embeddings, and tokens guessed ahead


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}], ids=str)
def test_embeddings_stand_for_ids_and_only_what_is_new_comes_back(
    model: HeliumForCausalLM, options: dict[str, object]
) -> None:
    options |= {"attention_mask": MASK, "max_new_tokens": 6, "eos_token_id": None}
    embeds, expected = model.model.embed(PADDED), rows(generate(model, PADDED, **options))
    assert rows(generate(model, inputs_embeds=embeds, **options)) == [row[5:] for row in expected]
    assert rows(generate(model, PADDED, inputs_embeds=embeds, **options)) == expected


def test_limits_of_a_length_count_embeddings(model: HeliumForCausalLM) -> None:
    embeds = model.model.embed(mx.array([PROMPT]))
    assert generate(model, inputs_embeds=embeds, max_length=9, eos_token_id=None).shape == (1, 3)


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("guessing", ["text", "itself", "another"])
def test_guesses_change_nothing(
    model: HeliumForCausalLM, load_case: CaseLoader, guessing: str, do_sample: bool
) -> None:
    ids, streamer = mx.array([[3, *PROMPT]]), Recorded()
    options = {"attention_mask": mx.array([[0] + [1] * 6]), "max_new_tokens": 20, "repetition_penalty": 1.2}
    options |= {"eos_token_id": None, "do_sample": do_sample, "temperature": 1e-6, "seed": 3}
    drafted = {
        "text": {"prompt_lookup_num_tokens": 4},
        "itself": {"assistant_model": model},
        "another": {"assistant_model": load_case("helium-mqa-tied"), "num_assistant_tokens": 3},
    }[guessing]
    generated = rows(generate(model, ids, **options, **drafted, streamer=streamer))
    assert generated == rows(generate(model, ids, **options))
    assert streamer.values == [ids.tolist(), *([token] for token in generated[0][7:]), "end"]


def test_right_guesses_save_passes(model: HeliumForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = {"max_new_tokens": 12, "eos_token_id": None}
    repeated = rows(generate(model, mx.array([PROMPT]), **plain, sequence_bias={(20,): 100.0}))
    counted = Counted(model, monkeypatch)
    options = {"prompt_lookup_num_tokens": 5, "sequence_bias": {(20,): 100.0}}
    assert rows(generate(model, mx.array([PROMPT]), **plain, **options)) == repeated
    assert len(counted.lengths) < 6


def test_a_guess_goes_no_further_than_the_end(model: HeliumForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = mx.array([PROMPT])
    free = rows(generate(model, ids, max_new_tokens=9, eos_token_id=None))[0]
    options = {"assistant_model": model, "num_assistant_tokens": 8}
    assert (
        rows(generate(model, ids, max_new_tokens=9, eos_token_id=free[8], **options))[0]
        == free[: free.index(free[8], 6) + 1]
    )
    ends = [lambda ids, scores: ids.shape[1] == 10]
    assert rows(generate(model, ids, max_new_tokens=9, stopping_criteria=ends, **options))[0] == free[:10]
    cache = make_cache(model)
    generate(model, ids, max_new_tokens=9, eos_token_id=None, past_key_values=cache, **options)
    assert cache[0].offset == 14


# --- settings


def test_settings_come_from_the_call_then_the_config_given_then_the_models_own(
    model: HeliumForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def new(generation_config: GenerationConfig | dict[str, object] | None = None, **options: object) -> int:
        ids = mx.array([PROMPT])
        return generate(model, ids, generation_config, eos_token_id=None, **options).shape[1] - len(PROMPT)

    own = GenerationConfig(max_new_tokens=3, eos_token_id=2)
    monkeypatch.setattr(model, "generation_config", own)
    assert new() == 3
    assert new(GenerationConfig(max_new_tokens=4)) == 4
    assert new({"max_new_tokens": 5}) == 5
    assert new({"max_new_tokens": 5}, max_new_tokens=6) == 6
    assert own == GenerationConfig(max_new_tokens=3, eos_token_id=2)


def test_none_at_the_call_switches_a_setting_off(model: HeliumForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = rows(generate(model, mx.array([PROMPT]), max_new_tokens=20))
    monkeypatch.setattr(model, "generation_config", GenerationConfig(repetition_penalty=5.0, eos_token_id=2))
    assert rows(generate(model, mx.array([PROMPT]), max_new_tokens=20)) != plain
    assert rows(generate(model, mx.array([PROMPT]), max_new_tokens=20, repetition_penalty=None)) == plain


def test_the_demos_settings_are_read_and_written_back(tmp_path: Path) -> None:
    model, stored = HeliumForCausalLM.from_pretrained("demo"), DEMO_DIRECTORY / "generation_config.json"
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / stored.name).read_text()) == json.loads(stored.read_text())
    model.generation_config.top_k = 7
    model.save_pretrained(tmp_path / "changed")
    assert HeliumForCausalLM.from_pretrained(tmp_path / "changed").generation_config.top_k == 7


def test_a_new_models_settings_are_its_configs(model: HeliumForCausalLM) -> None:
    fresh = HeliumForCausalLM(model.config).generation_config
    assert (fresh.bos_token_id, fresh.eos_token_id, fresh.pad_token_id) == (1, 2, 3)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_where_the_settings_file_is_malformed_the_config_counts(
    tmp_path: Path, model: HeliumForCausalLM, text: str
) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    assert GenerationConfig.of_directory(tmp_path, model.config) == GenerationConfig.from_model_config(model.config)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_beam_groups", 2),
        ("diversity_penalty", 0.5),
        ("force_words_ids", [[5]]),
        ("penalty_alpha", 0.6),
        ("dola_layers", "low"),
        ("cache_implementation", "static"),
        ("max_new_token", 3),
    ],
)
def test_what_is_not_supported_is_refused_by_name_wherever_it_is_set(
    model: HeliumForCausalLM, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: object
) -> None:
    own = GenerationConfig(max_new_tokens=2)
    monkeypatch.setattr(model, "generation_config", own)
    setattr(own, name, value)
    for config in (None, {"max_new_tokens": 3}):
        with pytest.raises(GenerationError, match=f"{name}"):
            generate(model, mx.array([PROMPT]), config)
    given = GenerationConfig(max_new_tokens=2)
    setattr(given, name, value)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text())[name] == value
    delattr(own, name)
    for config in (given, {name: value}):
        with pytest.raises(GenerationError, match=f"{name}"):
            generate(model, mx.array([PROMPT]), config)


def test_what_is_set_back_is_not_refused(model: HeliumForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    own = GenerationConfig.from_dict({"num_beam_groups": 4, "max_new_tokens": 2, "from_another_program": 1})
    monkeypatch.setattr(model, "generation_config", own)
    with pytest.raises(GenerationError, match="num_beam_groups is 4"):
        generate(model, mx.array([PROMPT]))
    for value in (1, None):
        generate(model, mx.array([PROMPT]), num_beam_groups=value)
    with pytest.raises(GenerationError, match="from_another_program"):
        generate(model, mx.array([PROMPT]), num_beam_groups=1, from_another_program=2)
    vars(own)["num_beam_groups"] = 1
    generate(model, mx.array([PROMPT]))


def test_the_models_settings_may_be_a_dict(model: HeliumForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "generation_config", {"max_new_tokens": 3})
    assert generate(model, mx.array([PROMPT])).shape == (1, len(PROMPT) + 3)


NUMBERS = {
    "max_new_tokens": [np.int64(5), np.uint8(5), mx.array(5)],
    "max_length": [np.int32(12)],
    "temperature": [np.float32(0.5), np.float64(0.5), mx.array(0.5)],
    "top_k": [np.int64(3)],
    "top_p": [np.float16(0.5)],
    "min_p": [np.float32(0.25)],
    "repetition_penalty": [np.float32(1.5)],
    "eos_token_id": [np.int64(2), [np.int64(2)], np.array([2, 5]), mx.array([2, 5])],
    "pad_token_id": [np.int64(3)],
    "do_sample": [np.bool_(True)],
    "num_return_sequences": [np.int64(2)],
    "seed": [np.uint64(7), np.int64(7)],
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_may_be_numpys_or_mlxs(model: HeliumForCausalLM, name: str) -> None:
    common: dict[str, object] = {"do_sample": True, "seed": 7}
    if name != "max_length":
        common["max_new_tokens"] = 5
    for value in NUMBERS[name]:
        expected = generate(
            model, mx.array([PROMPT]), **{**common, name: value.tolist() if hasattr(value, "tolist") else 2}
        )
        assert generate(model, mx.array([PROMPT]), **{**common, name: value}).tolist() == expected.tolist()
        if name != "seed":
            given = {"generation_config": {name: value}} | {k: v for k, v in common.items() if k != name}
            assert generate(model, mx.array([PROMPT]), **given).tolist() == expected.tolist()


def test_a_pad_of_minus_one_stands_for_none(model: HeliumForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    # As configs of base models have it. transformers warns, and fills finished rows with what it cannot run.
    ids = mx.array([PROMPT, PROMPT[::-1]])
    eos = rows(generate(model, ids, max_new_tokens=4))[0][-3]
    monkeypatch.setattr(model, "generation_config", GenerationConfig(max_new_tokens=4, eos_token_id=eos))
    expected = generate(model, ids)
    assert generate(model, ids, pad_token_id=-1).tolist() == expected.tolist()
    monkeypatch.setattr(
        model, "generation_config", GenerationConfig(max_new_tokens=4, eos_token_id=eos, pad_token_id=-1)
    )
    assert generate(model, ids).tolist() == expected.tolist()


def test_settings_of_a_file_that_nobody_knows_are_ignored_and_groups_of_beams_are_not(
    model: HeliumForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "generation_config", GenerationConfig.from_dict({"mystery": 3, "max_new_tokens": 2}))
    assert generate(model, mx.array([PROMPT])).shape[1] == len(PROMPT) + 2
    monkeypatch.setattr(model, "generation_config", GenerationConfig.from_dict({"num_beam_groups": 4}))
    with pytest.raises(GenerationError, match="num_beam_groups is 4"):
        generate(model, mx.array([PROMPT]), max_new_tokens=2)


# --- what is refused


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_an_argument_that_is_not_supported_is_refused_by_name(model: HeliumForCausalLM, name: str) -> None:
    with pytest.raises(GenerationError, match=rf"^{name} is Recorded; .* not supported") as refused:
        generate(model, mx.array([PROMPT]), max_new_tokens=2, **{name: Recorded()})
    assert "\n" not in str(refused.value)
    for off in (None, *REFUSED[name]):
        generate(model, mx.array([PROMPT]), max_new_tokens=1, **{name: off})


def test_the_docs_say_of_each_refusal_why() -> None:
    page = (Path(__file__).parents[2] / "docs" / "transformers.md").read_text()
    table = page.partition("| absent | why |")[2].partition("\n\n")[0]
    absent = [row.split("|")[1] for row in table.splitlines() if row]
    named = {name for cell in absent for name in re.findall(r"`(\w+)`", cell)}
    assert named == {*REFUSED, "guidance_scale", "num_beams"}


@pytest.mark.parametrize("name", IGNORED)
def test_what_changes_nothing_here_is_taken(model: HeliumForCausalLM, name: str) -> None:
    plain = rows(generate(model, mx.array([PROMPT]), max_new_tokens=2))
    for value in (True, 5, {"x": 1}):
        assert rows(generate(model, mx.array([PROMPT]), max_new_tokens=2, **{name: value})) == plain


def test_a_prompt_in_chunks_gives_the_same(model: HeliumForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"attention_mask": MASK, "max_new_tokens": 4, "eos_token_id": None}
    plain = rows(generate(model, PADDED, **options))
    embeds = model.model.embed(PADDED)
    counted = Counted(model, monkeypatch)
    assert rows(generate(model, PADDED, prefill_chunk_size=2, **options)) == plain
    assert counted.lengths == [2, 2, 1, 1, 1, 1]
    chunked = generate(model, inputs_embeds=embeds, prefill_chunk_size=5, num_beams=1, **options)
    assert rows(chunked) == [row[5:] for row in plain]


BAD: dict[str, tuple[dict[str, object], str]] = {
    "groups of beams": ({"num_beam_groups": 2}, "num_beam_groups is 2"),
    "groups that are True": ({"num_beam_groups": True}, "num_beam_groups is True"),
    "banned words past the vocabulary": ({"bad_words_ids": [[5, 96]]}, "bad_words_ids has the token 96"),
    "a bias past the vocabulary": ({"sequence_bias": {(1, 99): 2.0}}, "sequence_bias has the token 99"),
    "a bias of text": ({"sequence_bias": {(1,): "x"}}, "it must be a number for each tuple of ids"),
    "words that are no lists": ({"bad_words_ids": [5]}, "a list of lists of ids"),
    "what is forced and suppressed": (
        {"forced_eos_token_id": 5, "suppress_tokens": [4, 5]},
        "suppress_tokens has that",
    ),
    "typical_p 0": ({"do_sample": True, "typical_p": 0.0}, r"typical_p is 0\.0"),
    "a cutoff of 1": ({"do_sample": True, "eta_cutoff": 1.0}, r"eta_cutoff is 1\.0"),
    "no time": ({"max_time": -1}, "max_time is -1"),
    "a processor that is none": ({"logits_processor": [3]}, "logits_processor is .* a list of functions"),
    "a processor alone": ({"logits_processor": abs}, "a list of functions"),
    "a processor of nothing": ({"logits_processor": [lambda ids, scores: None]}, "NoneType; it must return scores"),
    "a processor of a row": ({"logits_processor": [lambda ids, scores: scores[0]]}, r"shape \(96,\); it must return"),
    "a criterion of text": ({"stopping_criteria": [lambda ids, scores: "x"]}, "str; it must return a boolean"),
    "allowed ids of none": ({"prefix_allowed_tokens_fn": lambda row, ids: []}, "must return ids, at least one"),
    "all ruled out": (
        {"do_sample": True, "logits_processor": [lambda ids, scores: scores - float("inf")]},
        "rule out every token",
    ),
    "a negative mask alone": ({"guidance_scale": 2.0, "negative_prompt_attention_mask": mx.ones((1, 2))}, "without"),
    "a negative prompt of two rows": ({"guidance_scale": 2, "negative_prompt_ids": mx.array([[1], [2]])}, "has 2 rows"),
    "a typo": ({"max_new_token": 3}, "no argument max_new_token; did you mean max_new_tokens"),
    "a typo in a config": ({"generation_config": {"top_q": 3}}, "no argument top_q"),
    "a config of no kind": ({"generation_config": 3}, "generation_config is int"),
    "several greedy texts": ({"num_return_sequences": 2}, "num_return_sequences is 2"),
    "more texts than beams": ({"num_beams": 2, "num_return_sequences": 3}, "num_beams, 2, is the most"),
    "beams with guidance": ({"num_beams": 2, "guidance_scale": 2.0}, "not supported together"),
    "streamed beams": ({"num_beams": 2, "streamer": Recorded()}, "streamer came"),
    "early stopping as text": ({"num_beams": 2, "early_stopping": "soon"}, "early_stopping is 'soon'"),
    "guesses for two rows": (
        {"do_sample": True, "num_return_sequences": 2, "prompt_lookup_num_tokens": 2},
        "prompt_lookup_num_tokens is for one row; 2 are generated",
    ),
    "guesses without a cache": ({"prompt_lookup_num_tokens": 2, "use_cache": False}, "cannot go with"),
    "an assistant of text": ({"assistant_model": "x"}, "assistant_model is str"),
    "embeddings of another width": ({"inputs_embeds": mx.zeros((1, 6, 3))}, "inputs_embeds has shape"),
    "embeddings beside fewer ids": ({"inputs_embeds": mx.zeros((1, 7, 64))}, "beside inputs_embeds expected"),
    "chunks without a cache": ({"prefill_chunk_size": 2, "use_cache": False}, "prefill_chunk_size needs a cache"),
    "no new tokens": ({"max_new_tokens": 0}, "max_new_tokens is 0"),
    "new tokens of True": ({"max_new_tokens": True}, "max_new_tokens is True"),
    "a fraction of tokens": ({"max_new_tokens": 2.5}, r"max_new_tokens is 2\.5"),
    "max_length within the prompt": ({"max_new_tokens": None, "max_length": 5}, "max_length, which counts them, is 5"),
    "temperature 0": ({"do_sample": True, "temperature": 0.0}, "set do_sample=False"),
    "top_k below 0": ({"do_sample": True, "top_k": -1}, "top_k is -1"),
    "top_p over 1": ({"do_sample": True, "top_p": 1.5}, r"top_p is 1\.5"),
    "min_p of NaN": ({"do_sample": True, "min_p": float("nan")}, "min_p is nan"),
    "penalty 0": ({"repetition_penalty": 0.0}, r"repetition_penalty is 0\.0"),
    "n-grams of -1": ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size is -1"),
    "an eos of -2": ({"eos_token_id": -2}, "eos_token_id is -2"),
    "an eos past the vocabulary": ({"eos_token_id": [2, 96]}, r"from 0 to 95"),
    "a pad past the vocabulary": ({"pad_token_id": 96}, "pad_token_id is 96"),
    "do_sample as text": ({"do_sample": "yes"}, "do_sample is 'yes'"),
    "an empty stop string": ({"stop_strings": [""]}, "stop_strings is"),
    "stop strings alone": ({"stop_strings": "x"}, "tokenizer=tokenizer"),
    "stop strings with something else": ({"stop_strings": "x", "tokenizer": 3}, "int came"),
    "a seed below 0": ({"seed": -1}, "seed is -1"),
    "ids twice": ({"input_ids": mx.array([PROMPT])}, "both inputs and input_ids"),
    "a mask of another shape": ({"attention_mask": mx.array([[1, 1]])}, r"attention_mask is \(1, 2\)"),
    "a 4-D mask": ({"attention_mask": mx.ones((1, 1, 6, 6))}, r"attention_mask is \(1, 1, 6, 6\)"),
    "a list for a mask": ({"attention_mask": [[1] * 6]}, "attention_mask is list"),
    "a mask of twos": ({"attention_mask": mx.full((1, 6), 2)}, "other than 0 and 1"),
    "a cache of another model": ({"past_key_values": []}, "make_cache"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_refused_in_one_line(model: HeliumForCausalLM, name: str) -> None:
    options, said = BAD[name]
    with pytest.raises(HeliumError, match=said) as refused:
        generate(model, mx.array([PROMPT]), **{"max_new_tokens": 2, **options})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("inputs", [mx.array(PROMPT), [PROMPT], mx.array([[96]]), mx.zeros((1, 0), mx.int32)])
def test_bad_prompts_are_refused(model: HeliumForCausalLM, inputs: mx.array) -> None:
    with pytest.raises(ArgumentError, match="input_ids"):
        generate(model, inputs, max_new_tokens=2)


def test_a_cache_that_holds_the_whole_prompt_is_refused(model: HeliumForCausalLM) -> None:
    cache = make_cache(model)
    model(mx.array([PROMPT]), past_key_values=cache)
    with pytest.raises(ArgumentError, match="past_key_values holds 6 tokens"):
        generate(model, mx.array([PROMPT]), past_key_values=cache, max_new_tokens=2)
    with pytest.raises(GenerationError, match="use_cache is False"):
        generate(model, mx.array([[*PROMPT, 7]]), past_key_values=cache, max_new_tokens=2, use_cache=False)
    with pytest.raises(ArgumentError, match="past_key_values holds 1 rows"):
        generate(model, mx.array([[*PROMPT, 7]] * 2), past_key_values=cache, max_new_tokens=2)


def test_more_stop_strings_than_are_looked_for_are_refused(model: HeliumForCausalLM) -> None:
    tokenizer = HeliumTokenizer.from_pretrained("demo")
    with pytest.raises(OptionError, match="stop_strings has 1001 strings of 1001 characters in all; at most 1000"):
        generate(model, mx.array([PROMPT]), max_new_tokens=2, stop_strings=["x"] * 1001, tokenizer=tokenizer)


WARNED: dict[str, tuple[dict[str, object], str]] = {
    "no length": ({}, "20 new tokens are generated"),
    "two lengths": ({"max_new_tokens": 2, "max_length": 20}, "max_new_tokens counts"),
    "two least lengths": ({"max_new_tokens": 2, "min_new_tokens": 1, "min_length": 2}, "min_new_tokens counts"),
    "filters without sampling": ({"max_new_tokens": 2, "top_p": 0.5, "temperature": 2.0}, "temperature, top_p had no"),
    "beams' settings without beams": ({"max_new_tokens": 2, "length_penalty": 2.0}, "length_penalty had no effect"),
    "scores that are not returned": ({"max_new_tokens": 2, "output_scores": True}, "output_scores had no effect"),
    "past the context": ({"max_new_tokens": 260}, "the model was trained for 256"),
    "padding on the right": (
        {"max_new_tokens": 2, "attention_mask": mx.array([[1] * 6, [1, 1, 1, 1, 1, 0]])},
        "pad on the left",
    ),
}


@pytest.mark.parametrize("name", WARNED)
def test_what_is_likely_a_mistake_is_warned_of_where_it_is_made(model: HeliumForCausalLM, name: str) -> None:
    options, said = WARNED[name]
    with pytest.warns(UserWarning, match=said) as warned:
        generate(model, mx.array([PROMPT] * 2), **options)
    assert [warning.filename for warning in warned] == [__file__]


def test_a_plain_call_warns_of_nothing(model: HeliumForCausalLM) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(model, PADDED, attention_mask=MASK, max_new_tokens=2, min_new_tokens=1, do_sample=True, top_p=0.5)


def test_generating_loads_nothing_heavy() -> None:
    code = """
import sys, helium_mlx, mlx.core as mx
model = helium_mlx.HeliumForCausalLM.from_pretrained("demo")
model.generate(mx.array([[1, 5]]), max_new_tokens=2, do_sample=True)
print([name for name in ("transformers", "torch", "mlx_lm", "numpy", "tokenizers") if name in sys.modules])
"""
    assert run_code(code, check=True).stdout == "[]\n"


def test_every_setting_is_a_field() -> None:
    assert GenerationConfig.from_dict(dict.fromkeys(NAMES)) == GenerationConfig()


@pytest.mark.parametrize("never", [-1, [], [-1]])
def test_an_eos_that_never_comes_lets_rows_go_on(load_case: CaseLoader, never: int | list[int]) -> None:
    model, ids = load_case("helium-mha"), mx.array([[1, 5, 9]])
    free = model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None)
    first = cast(int, free[0, 3].item())
    assert model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=first).shape == (1, 4)
    assert mx.array_equal(model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=never), free)


def test_empty_lists_of_what_is_not_supported_are_off(load_case: CaseLoader) -> None:
    model, ids = load_case("helium-mha"), mx.array([[1, 5, 9]])
    plain = model.generate(ids, max_new_tokens=3, do_sample=False)
    assert mx.array_equal(
        model.generate(ids, max_new_tokens=3, do_sample=False, logits_processor=[], stopping_criteria=[]), plain
    )
