"""Continuous batching: each row is its solo run, whoever comes and goes beside it."""

from collections.abc import Callable, Iterator
from typing import cast

import mlx.core as mx
import pytest
from measures import relative_error
from passes import Passes
from tiny_checkpoints import CaseLoader

import helium_mlx
from helium_mlx.errors import ContextOverflowError, GenerationError, HeliumError
from helium_mlx.generation import batching
from helium_mlx.generation.batching import Completion, Request, batch_generate
from helium_mlx.generation.decoding_batch import _DecodingStep, groups_of, prefill_rows
from helium_mlx.kv_cache import memory as cache_memory
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

Demo = tuple[HeliumForCausalLM, HeliumTokenizer]

# Ragged, in no order, one of them longer than all others together.
PROMPTS: list[str] = [
    "Once upon a time",
    "Il était une fois une fille qui s'appelait Zoé",
    "A",
    "Um drei Uhr trafen sich Anna und Felix im Hafen. Felix hatte einen silbernen Hut verloren",
    "Era una noche tranquila, y Lucía",
    "Ogni giorno, dopo pranzo, Agnese giocava nel parco. " * 6,
    "No dia 13 de março",
    "Es war einmal",
    "Once upon a time there was a boy called Arthur",
    "Il",
    "Il était une fois",
]
# Rows end at different steps, so that others join in between.
LIMITS = [7, 3, 12, 1, 9, 5, 16, 2, 8, 11, 4]
REQUESTS = [Request(prompt, max_tokens=limit) for prompt, limit in zip(PROMPTS, LIMITS, strict=True)]


def solo(demo: Demo, prompt: object, **options: object) -> tuple[list[int], str, str | None]:
    stream = cast(Callable[..., Iterator[helium_mlx.GenerationChunk]], helium_mlx.stream_generate)
    chunks = list(stream(*demo, prompt, **options))
    return [chunk.token for chunk in chunks], "".join(chunk.text for chunk in chunks), chunks[-1].finish_reason


def outcome(completion: Completion) -> tuple[list[int], str, str | None]:
    return completion.tokens, completion.text, completion.finish_reason


def by_index(completions: Iterator[Completion]) -> list[Completion]:
    return sorted(completions, key=lambda completion: (completion.index, completion.sample))


def texts_of(model: HeliumForCausalLM, tokenizer: HeliumTokenizer, prompts: list[str], **options: object) -> list[str]:
    completions = cast(Callable[..., Iterator[Completion]], batch_generate)(model, tokenizer, prompts, **options)
    return [completion.text for completion in by_index(completions)]


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_rows_that_leave_and_join_are_their_solo_runs(demo: Demo, batch_size: int) -> None:
    found = by_index(batch_generate(*demo, REQUESTS, batch_size=batch_size, ignore_eos=True, prefill_step_size=32))
    assert [completion.index for completion in found] == list(range(len(PROMPTS)))
    for completion, prompt, limit in zip(found, PROMPTS, LIMITS, strict=True):
        assert outcome(completion) == solo(demo, prompt, max_tokens=limit, ignore_eos=True)
        assert completion.generated_tokens == len(completion.tokens) == limit
        assert completion.prompt_tokens == len(demo[1].encode(prompt))
        assert completion.prompt == prompt


def test_the_order_of_the_prompts_changes_no_row(demo: Demo) -> None:
    options = {"batch_size": 4, "max_tokens": 10}
    there = texts_of(*demo, PROMPTS, **options)
    back = texts_of(*demo, PROMPTS[::-1], **options)
    assert there == back[::-1]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.9, "seed": 7},
        {"temperature": 1.2, "seed": 0, "top_p": 0.8, "top_k": 30, "min_p": 0.01, "repetition_penalty": 1.3},
        {"repetition_penalty": 1.5, "repetition_context_size": 6},
        {"presence_penalty": -2.0, "frequency_penalty": -2.0, "temperature": 3.0, "seed": 1},
        {"temperature": 0.7, "seed": 2**64 - 2},
    ],
)
def test_a_row_draws_as_its_solo_run_with_the_seed_moved_by_its_index(demo: Demo, options: dict[str, object]) -> None:
    found = by_index(
        cast(Callable[..., Iterator[Completion]], batch_generate)(*demo, REQUESTS, batch_size=3, **options)
    )
    for completion, prompt, limit in zip(found, PROMPTS, LIMITS, strict=True):
        own = dict(options)
        if "seed" in own:
            own["seed"] = (cast(int, own["seed"]) + completion.index) % 2**64
        assert outcome(completion) == solo(demo, prompt, max_tokens=limit, **own)


def test_without_a_seed_draws_differ(demo: Demo) -> None:
    texts = texts_of(*demo, [PROMPTS[0]] * 4, temperature=1.5, max_tokens=20)
    assert len(set(texts)) > 1


@pytest.mark.parametrize("reason", ["stop", "eos"])
def test_a_row_ends_where_it_ends_alone(demo: Demo, monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    stop = [",", "."] if reason == "stop" else []
    if reason == "eos":
        # Stories end late; commas and full stops come early, and at another step in each row.
        found = [token for token in range(demo[1].vocab_size) if demo[1].decode([token]).strip() in (",", ".")]
        monkeypatch.setattr(demo[1], "eos_token_ids", tuple(found))
    ended = list(batch_generate(*demo, PROMPTS, batch_size=3, max_tokens=40, stop=stop))
    assert [completion.finish_reason for completion in ended].count(reason) > 5  # pyright: ignore[reportArgumentType]
    assert len({completion.generated_tokens for completion in ended}) > 3
    for completion in ended:
        assert outcome(completion) == solo(demo, PROMPTS[completion.index], max_tokens=40, stop=stop)


def test_each_row_ends_where_the_context_does(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo[0].config, "max_position_embeddings", 12)
    found = by_index(batch_generate(*demo, [[1] * 8, [1] * 2, [1] * 11], ignore_eos=True, max_tokens=100))
    assert [(completion.generated_tokens, completion.finish_reason) for completion in found] == [
        (4, "length"),
        (10, "length"),
        (1, "length"),
    ]


def random_prompts(lengths: list[int], vocab_size: int) -> list[list[int]]:
    ids = mx.random.randint(0, vocab_size, (len(lengths), max(lengths)), key=mx.random.key(3)).tolist()
    return [row[:length] for row, length in zip(cast(list[list[int]], ids), lengths, strict=True)]


@pytest.mark.parametrize("case", ["helium-mha", "helium-gqa-bias", "llama-gqa-bias", "llama-mqa-tied"])
def test_logits_of_a_ragged_batch_are_those_of_the_whole_text(load_case: CaseLoader, case: str) -> None:
    model = load_case(case)
    texts = random_prompts([9, 2, 14, 5], model.config.vocab_size)
    for step_size in (64, 4):
        layers, logits = prefill_rows(model, [text[:-1] for text in texts], step_size=step_size)
        following = model.next_logits(mx.array([text[-1:] for text in texts]), list(layers), layers[0].lengths)
        for row, text in enumerate(texts):
            # Without a cache, a mask or a batch.
            whole = model(mx.array([text]), use_cache=False).logits[0]
            assert relative_error(logits[row], whole[-2]) < 1e-5
            assert relative_error(following[row], whole[-1]) < 1e-5


@pytest.mark.parametrize("case", ["helium-mha", "llama-gqa-bias"])
def test_greedy_ids_of_random_models_are_those_of_the_naive_loop(load_case: CaseLoader, demo: Demo, case: str) -> None:
    model = load_case(case)
    prompts = random_prompts([9, 2, 14, 5, 1], model.config.vocab_size)
    for completion in batch_generate(model, demo[1], prompts, batch_size=2, max_tokens=6, ignore_eos=True):
        tokens = list(prompts[completion.index])
        for _ in range(6):
            logits = model(mx.array([tokens]), use_cache=False).logits
            tokens.append(int(mx.argmax(logits[0, -1]).item()))  # pyright: ignore[reportArgumentType]
        assert completion.tokens == tokens[-6:]


def test_each_row_has_the_frequencies_of_its_own_length(load_case: CaseLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    rope = load_case("helium-mha").model._rope
    monkeypatch.setattr(rope, "rope_type", "longrope")
    monkeypatch.setattr(rope, "_wavelengths", {})
    half = rope.head_dim // 2
    parameters = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 8,
        "short_factor": [1.0] * half,
        "long_factor": [3.0] * half,
    }
    monkeypatch.setattr(rope, "parameters", parameters)
    x = mx.random.normal((3, 2, 1, rope.head_dim), key=mx.random.key(0))
    offsets = [2, 20, 7]
    together = rope.at_rows(offsets, 1)(x)
    for row, offset in enumerate(offsets):
        assert relative_error(together[row : row + 1], rope.at(offset, 1)(x[row : row + 1])) < 1e-6
    assert set(rope._wavelengths) == {0, 1}


def test_samples_share_one_prefill_and_differ_by_their_seeds(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    prefilled = []
    monkeypatch.setattr(
        batching,
        "prefill_rows",
        lambda model, prompts, **rest: (prefilled.extend(prompts), prefill_rows(model, prompts, **rest))[1],
    )
    found = by_index(batch_generate(*demo, PROMPTS[:2], samples=5, batch_size=3, temperature=1.0, seed=4, max_tokens=9))
    assert prefilled == [demo[1].encode(prompt) for prompt in PROMPTS[:2]]
    assert [(each.index, each.sample) for each in found] == [(i, s) for i in range(2) for s in range(5)]
    for each in found:
        assert outcome(each) == solo(
            demo, PROMPTS[each.index], temperature=1.0, seed=4 + 5 * each.index + each.sample, max_tokens=9
        )


def test_a_request_can_ask_for_some_of_the_samples(demo: Demo) -> None:
    options = {"temperature": 1.0, "seed": 4, "max_tokens": 6}
    everything = by_index(batch_generate(*demo, PROMPTS[:1], samples=3, temperature=1.0, seed=4, max_tokens=6))
    (one,) = batch_generate(*demo, [Request(PROMPTS[0], samples=[1])], samples=3, temperature=1.0, seed=4, max_tokens=6)
    assert (one.sample, outcome(one)) == (1, outcome(everything[1]))
    assert outcome(one) == solo(demo, PROMPTS[0], **{**options, "seed": 5})


def test_a_request_may_bring_its_index(demo: Demo) -> None:
    (found,) = batch_generate(*demo, [Request("A", index=40)], temperature=1.0, seed=2, max_tokens=5)
    assert (found.index, outcome(found)) == (40, solo(demo, "A", temperature=1.0, seed=42, max_tokens=5))


def test_completions_come_as_they_end(demo: Demo) -> None:
    requests = [Request("A", max_tokens=30), Request("A", max_tokens=2), Request("A", max_tokens=3)]
    order = [completion.index for completion in batch_generate(*demo, requests, ignore_eos=True, batch_size=2)]
    assert order == [1, 2, 0]


def test_places_are_filled_at_once_and_no_step_is_run_in_vain(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = Passes(demo[0], monkeypatch)
    requests = [Request([1, 5], max_tokens=limit) for limit in (4, 2, 3, 1)]
    list(batch_generate(*demo, requests, batch_size=2, ignore_eos=True))
    # Two prompts; a step of both; the second has ended, so the third comes in, and the last after the first's end.
    assert passes.shapes == [(2, 2), (2, 1), (1, 2), (2, 1), (2, 1), (1, 2)]


def test_prompts_of_similar_length_are_prefilled_together_and_long_ones_alone() -> None:
    assert groups_of([4, 400, 5, 3, 100, 90], 16) == [[1], [4], [5], [2, 0, 3]]
    assert groups_of([8, 8, 8], 16) == [[0, 1], [2]]
    assert groups_of([1, 9], 100) == [[1], [0]]
    # With tokens that need not be run, those that are left count, and lengths still have to be alike.
    assert groups_of([100, 90, 80, 20, 70], 16, [96, 87, 79, 17, 0]) == [[4], [0, 1], [3], [2]]


def test_prompts_are_read_as_places_become_free(demo: Demo) -> None:
    read = []

    def prompts() -> Iterator[str]:
        for number in range(1000):
            read.append(number)
            yield "A"

    completions = batch_generate(*demo, prompts(), batch_size=2, max_tokens=3, ignore_eos=True)
    assert read == []
    next(completions)
    assert len(read) <= 4
    completions.close()


def test_a_bad_prompt_in_a_list_is_refused_before_anything_runs(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = Passes(demo[0], monkeypatch)
    with pytest.raises(GenerationError, match="prompt 2: prompt token -1 is not an id"):
        batch_generate(*demo, ["A", "B", [-1]])
    context = demo[0].config.max_position_embeddings
    with pytest.raises(ContextOverflowError, match="prompt 1: the prompt has"):
        batch_generate(*demo, ["A", [5] * (context + 1)])
    assert passes.shapes == []


def test_a_bad_prompt_of_an_iterator_raises_once_those_before_it_have_ended(demo: Demo) -> None:
    found = []
    with pytest.raises(GenerationError, match="prompt 2: prompt has no tokens"):
        for completion in batch_generate(*demo, iter(["A", "Il", [], "B"]), max_tokens=5, ignore_eos=True):
            found.append(completion.index)
    assert sorted(found) == [0, 1]


BAD: dict[str, tuple[object, dict[str, object], str]] = {
    "a single text": ("abc", {}, "single prompt"),
    "a single prompt's ids": ([1, 2], {}, "single prompt"),
    "batch size 0": (["A"], {"batch_size": 0}, "batch_size is 0"),
    "samples 0": (["A"], {"samples": 0}, "samples is 0"),
    "max_tokens 0": (["A"], {"max_tokens": 0}, "max_tokens is 0"),
    "a request's max_tokens": ([Request("A", max_tokens=-1)], {}, "prompt 0: max_tokens is -1"),
    "an empty stop": (["A"], {"stop": [""]}, "at least one character"),
    "temperature below 0": (["A"], {"temperature": -1.0}, "temperature is -1"),
    "bytes": ([b"A"], {}, "prompt 0: prompt is bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_at_the_call(demo: Demo, name: str) -> None:
    prompts, options, said = BAD[name]
    with pytest.raises(HeliumError, match=said):
        cast(Callable[..., object], batch_generate)(*demo, prompts, **options)


def test_a_list_that_memory_has_no_room_for_is_refused_before_anything_runs(
    demo: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = cache_memory.cache_bytes(demo[0].config, 40, dtype=demo[0].model.norm.weight.dtype)
    monkeypatch.setattr(cache_memory, "working_set_bytes", lambda: cache_memory.bytes_in_memory(demo[0]) + 2 * row)
    prompts = [[1] * 10, [1] * 30, [1] * 5]
    for call in (batch_generate, helium_mlx.generate):
        with pytest.raises(GenerationError, match=r"for 3 rows of 40 tokens are over .*; give batch_size 2$"):
            cast(Callable[..., object], call)(*demo, prompts, max_tokens=10)
    assert len(list(batch_generate(*demo, prompts, max_tokens=10, batch_size=2))) == 3


def test_prompts_of_an_iterator_are_refused_where_the_batch_no_longer_fits(
    demo: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = cache_memory.cache_bytes(demo[0].config, 40, dtype=demo[0].model.norm.weight.dtype)
    monkeypatch.setattr(cache_memory, "working_set_bytes", lambda: cache_memory.bytes_in_memory(demo[0]) + 2 * row)
    completions = batch_generate(*demo, iter([[1] * 10, [1] * 5, [1] * 40]), max_tokens=10, ignore_eos=True)
    done = [next(completions), next(completions)]
    with pytest.raises(GenerationError, match=r"for 3 rows of 50 tokens .*; give batch_size 1$"):
        next(completions)
    assert {completion.index for completion in done} == {0, 1}


def test_no_prompts_are_no_completions(demo: Demo) -> None:
    assert list(batch_generate(*demo, [])) == []
    assert texts_of(*demo, []) == []


def test_closing_early_frees_the_caches(demo: Demo) -> None:
    list(batch_generate(*demo, PROMPTS[:2], max_tokens=2))
    mx.synchronize()
    before = mx.get_active_memory()
    completions = batch_generate(*demo, [Request("A", max_tokens=2), *PROMPTS[:3]], ignore_eos=True)
    next(completions)
    assert mx.get_active_memory() > before
    completions.close()
    mx.synchronize()
    # Less, where something that an earlier test left has been freed meanwhile.
    assert mx.get_active_memory() <= before


def test_memory_does_not_grow_with_what_was_completed(demo: Demo) -> None:
    held = []
    for completion in batch_generate(*demo, ("A" for _ in range(60)), batch_size=4, max_tokens=3, ignore_eos=True):
        if completion.index % 4 == 3:
            mx.synchronize()
            held.append(mx.get_active_memory())
    # What is on its way to be freed differs by some kB; the caches of four prompts have 50, of all of them 700.
    assert max(held[10:]) <= max(held[:5]) + 100_000


def test_the_next_step_is_under_way_when_tokens_are_read(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    events, start, read = list[str](), mx.async_eval, _DecodingStep.read
    monkeypatch.setattr(mx, "async_eval", lambda *arrays: (events.append("start"), start(*arrays))[1])
    monkeypatch.setattr(
        _DecodingStep, "read", lambda self: (events.append("read") if self.rows else None, read(self))[1]
    )
    list(batch_generate(*demo, [[1], [1]], max_tokens=4, ignore_eos=True))
    decoding = [event for event in events if event][-6:]
    assert decoding[-5:] == ["start", "read", "start", "read", "read"]
