"""Random combinations of `generate`'s options against live transformers, in float32; needs the extra `parity`.

`--parity-cases 5000` compares that many of each kind. Every case has a seed of its own, which a failure names.
"""

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

sys.path.insert(0, str(Path(__file__).parent.parent / "reference"))

import make_reference  # noqa: E402
from tiny_checkpoints import write_checkpoint  # noqa: E402

from helium_mlx import GenerationConfig, HeliumForCausalLM  # noqa: E402
from helium_mlx.model.generate_options import Settings  # noqa: E402
from helium_mlx.model.loading import load_model  # noqa: E402
from helium_mlx.model.processors import PROCESSORS, Call, make_processors  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

VOCAB, PAD = 96, 3
Options = dict[str, Any]

generate = cast("Callable[..., Any]", HeliumForCausalLM.generate)


class Pair:
    """A checkpoint, opened here and by transformers."""

    def __init__(self, directory: Path) -> None:
        self.ours: HeliumForCausalLM = load_model(directory, dtype="float32")
        self.theirs: Any = make_reference.load_reference(directory)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(write_checkpoint(tmp_path_factory.mktemp("pair")))


def seeds(config: pytest.Config, share: float = 1.0) -> range:
    return range(max(1, int(cast(int, config.getoption("--parity-cases")) * share)))


def some_ids(rng: random.Random, least: int = 1, most: int = 4) -> list[int]:
    return [rng.randrange(VOCAB) for _ in range(rng.randint(least, most))]


def random_prompt(rng: random.Random) -> tuple[list[list[int]], list[list[int]] | None]:
    """Rows of few different ids, so that they repeat, padded on the left; without a mask where none is needed."""
    rows = [[rng.randrange(4, 24) for _ in range(rng.randint(1, 12))] for _ in range(rng.randint(1, 4))]
    length = max(map(len, rows))
    mask = [[0] * (length - len(row)) + [1] * len(row) for row in rows]
    padded = [[PAD] * (length - len(row)) + row for row in rows]
    return padded, mask if any(0 in row for row in mask) or rng.random() < 0.3 else None


# What each setting may be drawn as.
DRAWN: dict[str, Callable[[random.Random], object]] = {
    "sequence_bias": lambda rng: {
        tuple(some_ids(rng)) if rng.random() < 0.5 else (rng.randrange(4, 24), rng.randrange(VOCAB)): rng.uniform(-9, 9)
        for _ in range(rng.randint(1, 8))
    },
    "encoder_repetition_penalty": lambda rng: rng.uniform(0.3, 3),
    "repetition_penalty": lambda rng: rng.uniform(0.3, 3),
    "no_repeat_ngram_size": lambda rng: rng.randint(1, 4),
    "encoder_no_repeat_ngram_size": lambda rng: rng.randint(1, 4),
    "bad_words_ids": lambda rng: [
        some_ids(rng) if rng.random() < 0.5 else [rng.randrange(4, 24), rng.randrange(VOCAB)]
        for _ in range(rng.randint(1, 8))
    ],
    "min_new_tokens": lambda rng: rng.randint(1, 8),
    "min_length": lambda rng: rng.randint(1, 16),
    "forced_bos_token_id": lambda rng: rng.randrange(VOCAB),
    "forced_eos_token_id": lambda rng: rng.randrange(VOCAB) if rng.random() < 0.5 else some_ids(rng),
    "remove_invalid_values": lambda rng: True,
    "exponential_decay_length_penalty": lambda rng: (rng.randint(0, 4), rng.uniform(0.8, 2.5)),
    "suppress_tokens": lambda rng: some_ids(rng, 1, 20),
    "begin_suppress_tokens": lambda rng: some_ids(rng, 1, 20),
    "renormalize_logits": lambda rng: True,
}
DRAWN_SAMPLED: dict[str, Callable[[random.Random], object]] = {
    "temperature": lambda rng: rng.uniform(0.3, 3),
    "top_h": lambda rng: rng.uniform(0.1, 0.9),
    "top_k": lambda rng: rng.randint(0, 60),
    "top_p": lambda rng: rng.uniform(0.3, 1),
    "min_p": lambda rng: rng.uniform(0, 0.4),
    "typical_p": lambda rng: rng.uniform(0.2, 1),
    "epsilon_cutoff": lambda rng: rng.uniform(0, 0.05),
    "eta_cutoff": lambda rng: rng.uniform(0, 0.05),
}


def random_options(rng: random.Random, *, sampled: bool) -> Options:
    drawn = {**DRAWN, **(DRAWN_SAMPLED if sampled else {})}
    names = rng.sample(sorted(drawn), rng.randint(0, 6))
    options: Options = {name: drawn[name](rng) for name in sorted(names)}
    options["eos_token_id"] = rng.choice([2, [2, 50], [60, 61, 62], None])
    if options.get("exponential_decay_length_penalty") and options["eos_token_id"] is None:
        del options["exponential_decay_length_penalty"]
    if "remove_invalid_values" in options:
        # Powers of the largest number are infinite, and what is chosen among numbers that are none is open.
        options.pop("exponential_decay_length_penalty", None)
    if "suppress_tokens" in options:
        options.pop("forced_bos_token_id", None)
        options.pop("forced_eos_token_id", None)
    ends = options["eos_token_id"] if isinstance(options["eos_token_id"], list) else [options["eos_token_id"]]
    if "bad_words_ids" in options and not [b for b in options["bad_words_ids"] if b not in [[end] for end in ends]]:
        del options["bad_words_ids"]
    return options


def test_each_setting_is_drawn() -> None:
    added = {"prefix_allowed_tokens_fn", "logits_processor", "guidance_scale"}
    assert {setting.name for setting in PROCESSORS} | {"min_new_tokens"} == {*DRAWN, *DRAWN_SAMPLED, *added}


def bias_by_length(array: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    """A processor of a caller's, for either side."""

    def process(ids: Any, scores: Any) -> Any:  # noqa: ANN401
        favoured = [5.0 if token % 7 == ids.shape[1] % 7 else 0.0 for token in range(scores.shape[-1])]
        return scores + array(favoured)

    return process


def few_follow(first: int) -> Callable[[int, Any], list[int]]:
    """A `prefix_allowed_tokens_fn` for either side."""
    return lambda row, ids: [(first + row * 5 + int(ids[-1]) * k) % VOCAB for k in range(1, 9)]


def test_scores_are_theirs(pair: Pair, pytestconfig: pytest.Config) -> None:
    for seed in seeds(pytestconfig, 5):
        rng = random.Random(seed)
        options = random_options(rng, sampled=True) | {"do_sample": rng.random() < 0.8, "max_new_tokens": 6}
        if options["do_sample"] and isinstance(options.get("forced_eos_token_id"), list):
            # They are as likely as each other, and which of such a filter keeps is open.
            del options["forced_eos_token_id"]
        if "top_h" in options:
            # It may leave two tokens that are all but equal, and then rounding says which is the more typical one.
            options.pop("typical_p", None)
        prompt, mask = random_prompt(rng)
        new = rng.randint(0, 5)
        follow = few_follow(rng.randrange(VOCAB)) if rng.random() < 0.1 else None
        own = rng.random() < 0.1
        ids = [row + [rng.randrange(4, 24) for _ in range(new)] for row in prompt]
        logits = torch.randn(len(ids), VOCAB, generator=torch.Generator().manual_seed(seed)) * 4
        if options.get("remove_invalid_values"):
            logits[0, 7], logits[0, 8], logits[0, 9] = float("nan"), float("inf"), -float("inf")
        # Beside scores this high all probabilities are 0, and which of those are kept for beams is open.
        is_steep = not options.keys().isdisjoint(["remove_invalid_values", "exponential_decay_length_penalty"])
        beams = 3 if options["do_sample"] and not is_steep and rng.random() < 0.3 else 1
        try:
            theirs = their_scores(pair, options | {"num_beams": beams}, prompt, mask, ids, logits, follow, own)
        except ValueError:
            theirs = None
        chosen = Settings(GenerationConfig(), None, options, vocab_size=VOCAB, context=99).for_prompt(len(prompt[0]))
        call = Call(
            mx.array(prompt),
            chosen.eos,
            chosen.max_length,
            chosen.do_sample,
            None if mask is None else mx.argmax(mx.array(mask), axis=1),
            rows_each=1,
            least_kept=1 if beams == 1 else max(2, len(chosen.eos) + 1),
            is_begun_by_bos="forced_bos_token_id" in options,
        )
        added = {"prefix_allowed_tokens_fn": follow, "logits_processor": [bias_by_length(mx.array)] if own else []}
        ours = make_processors({**chosen.processors, **added}, call)(mx.array(ids), mx.array(logits.numpy()))
        if theirs is None or theirs.isnan().any():
            # Every token of a row is ruled out, which for both is an error once one is drawn.
            assert not mx.isfinite(ours.max(axis=-1)).all().item(), f"{seed}: {options}"
        else:
            require_close(ours, theirs, f"{seed}: {options}")


def require_close(ours: mx.array, theirs: Any, case: str) -> None:  # noqa: ANN401
    torch.testing.assert_close(
        torch.tensor(ours.tolist()), theirs, rtol=2e-5, atol=2e-5, equal_nan=True, msg=lambda said: f"{case}: {said}"
    )


def their_scores(
    pair: Pair,
    options: Options,
    prompt: list[list[int]],
    mask: list[list[int]] | None,
    ids: list[list[int]],
    logits: Any,  # noqa: ANN401
    follow: Callable[[int, Any], list[int]] | None,
    own: bool,
) -> Any:  # noqa: ANN401
    model, length = pair.theirs, len(prompt[0])
    config, _ = model._prepare_generation_config(None, **options)
    model._prepare_special_tokens(config, True, device="cpu")
    config = model._prepare_generated_length(
        config, True, "min_length" not in options, "input_ids", length, torch.tensor(prompt)
    )
    processors = model._get_logits_processor(
        config,
        input_ids_seq_length=length,
        encoder_input_ids=torch.tensor(prompt),
        prefix_allowed_tokens_fn=None if follow is None else follow,
        logits_processor=[bias_by_length(torch.tensor)] if own else [],
        device="cpu",
        model_kwargs={"attention_mask": None if mask is None else torch.tensor(mask)},
    )
    if follow is not None:
        for processor in processors:
            if hasattr(processor, "_num_beams"):
                processor._num_beams = 1
    return processors(torch.tensor(ids), logits.clone())


def both(pair: Pair, prompt: list[list[int]] | None, mask: list[list[int]] | None, options: Options) -> tuple[Any, Any]:
    """What both generate; options that are functions of a module's `array` are made for each side."""
    results = []
    sides = ((pair.ours, generate, mx.array), (pair.theirs, type(pair.theirs).generate, torch.tensor))
    for model, run, array in cast("list[tuple[Any, Any, Any]]", sides):
        own = {name: value.make(array) if isinstance(value, Made) else value for name, value in options.items()}
        shown = None if mask is None else array(mask)
        results.append(run(model, None if prompt is None else array(prompt), attention_mask=shown, **own))
    return results[0], results[1]


class Made:
    """An option whose value differs by side."""

    def __init__(self, make: Callable[[Callable[..., Any]], object]) -> None:
        self.make = make


def stop_after(length: int, token: int) -> Callable[[Any, Any], Any]:
    """A stopping criterion of a caller's, for either side."""
    return lambda ids, scores: (ids[:, -1] % 5 == token) & (ids.shape[1] > length)


def with_functions(rng: random.Random, options: Options, prompt: list[list[int]], *, criteria: bool = True) -> Options:
    """Add, now and then, functions of a caller's, and guidance."""
    if rng.random() < 0.2:
        options["logits_processor"] = Made(lambda array: [bias_by_length(array)])
    if criteria and rng.random() < 0.2:
        options["stopping_criteria"] = [stop_after(len(prompt[0]) + rng.randint(0, 3), rng.randrange(5))]
    if rng.random() < 0.1:
        options["prefix_allowed_tokens_fn"] = few_follow(rng.randrange(VOCAB))
    return options


def test_greedy_ids_are_theirs(pair: Pair, pytestconfig: pytest.Config) -> None:
    for seed in seeds(pytestconfig):
        rng = random.Random(seed)
        prompt, mask = random_prompt(rng)
        options = with_functions(rng, random_options(rng, sampled=False), prompt)
        options |= {"max_new_tokens": rng.randint(1, 10), "do_sample": False, "use_cache": rng.random() < 0.8}
        if rng.random() < 0.15:
            options["guidance_scale"] = rng.uniform(0.5, 3)
            if rng.random() < 0.5:
                negative = [[rng.randrange(4, 24) for _ in range(5)] for _ in prompt]
                options["negative_prompt_ids"] = Made(lambda array, ids=negative: array(ids))
                if rng.random() < 0.5:
                    shown = [[0] * (k := rng.randint(0, 3)) + [1] * (5 - k) for _ in prompt]
                    options["negative_prompt_attention_mask"] = Made(lambda array, rows=shown: array(rows))
        ours, theirs = both(pair, prompt, mask, options)
        assert ours.tolist() == theirs.tolist(), (seed, options)


def random_outputs(rng: random.Random) -> Options:
    return {"return_dict_in_generate": True, "output_scores": rng.random() < 0.7, "output_logits": rng.random() < 0.7}


def require_same_outputs(ours: Any, theirs: Any, case: str) -> None:  # noqa: ANN401
    assert ours.sequences.tolist() == theirs.sequences.tolist(), case
    for name in ("scores", "logits", "attentions", "hidden_states"):
        of_ours, of_theirs = getattr(ours, name), getattr(theirs, name)
        assert (of_ours is None) == (of_theirs is None), (name, case)
        assert of_ours is None or len(of_ours) == len(of_theirs), (name, case)
        for step, expected in zip(of_ours or (), of_theirs or (), strict=True):
            pairs = zip(step, expected, strict=True) if isinstance(step, tuple) else [(step, expected)]
            for array, tensor in pairs:
                require_near(array, tensor, f"{case}: {name}")


def require_near(ours: mx.array, theirs: Any, case: str) -> None:  # noqa: ANN401
    """Two models' numbers, which differ by rounding."""
    torch.testing.assert_close(
        torch.tensor(ours.tolist()), theirs, rtol=1e-3, atol=2e-4, equal_nan=True, msg=lambda said: f"{case}: {said}"
    )


def test_outputs_are_theirs(pair: Pair, pytestconfig: pytest.Config) -> None:
    for seed in seeds(pytestconfig, 0.5):
        rng = random.Random(seed)
        prompt, mask = random_prompt(rng)
        options = with_functions(rng, random_options(rng, sampled=False), prompt) | random_outputs(rng)
        options |= {"max_new_tokens": rng.randint(1, 6), "use_cache": rng.random() < 0.8}
        # At padding, states are of no meaning.
        if mask is None or not any(0 in row for row in mask):
            options |= {"output_attentions": rng.random() < 0.5, "output_hidden_states": rng.random() < 0.5}
        options.pop("exponential_decay_length_penalty", None)
        ours, theirs = both(pair, prompt, mask, options)
        require_same_outputs(ours, theirs, f"{seed}: {options}")
        if theirs.scores is not None:
            chosen = (
                model.compute_transition_scores(of.sequences, of.scores)
                for model, of in ((pair.ours, ours), (pair.theirs, theirs))
            )
            require_near(next(chosen), next(chosen), f"{seed}: {options}")
        assert (ours.past_key_values is None) == (theirs.cache is None)
        if theirs.cache is not None:
            assert ours.past_key_values[0].offset == theirs.cache.get_seq_length()


def drop_ties(options: Options) -> None:
    """Take out what makes texts equally good, or leaves them no continuation: which beams then take is open."""
    for name in ("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty"):
        options.pop(name, None)


def test_beams_are_theirs(pair: Pair, pytestconfig: pytest.Config) -> None:
    for seed in seeds(pytestconfig):
        rng = random.Random(seed)
        prompt, mask = random_prompt(rng)
        options = with_functions(rng, random_options(rng, sampled=False), prompt, criteria=False)
        options |= {
            "max_new_tokens": rng.randint(1, 10),
            "num_beams": (beams := rng.randint(2, 4)),
            "num_return_sequences": rng.randint(1, beams),
            "length_penalty": rng.choice([1.0, 0.0, -1.0, 0.5, 2.0]),
            "early_stopping": rng.choice([True, False, "never"]),
            "eos_token_id": rng.choice([2, None, [2, 50], rng.sample(range(VOCAB), 12)]),
            "pad_token_id": rng.choice([3, 0, None]),
            "use_cache": rng.random() < 0.8,
        }
        if mask is None and rng.random() < 0.5:
            options["pad_token_id"] = 3
        drop_ties(options)
        options |= random_outputs(rng) if rng.random() < 0.5 else {}
        ours, theirs = both(pair, prompt, mask, options)
        if "return_dict_in_generate" not in options:
            assert ours.tolist() == theirs.tolist(), (seed, options)
            continue
        require_same_outputs(ours, theirs, f"{seed}: {options}")
        assert ours.beam_indices.tolist() == theirs.beam_indices.tolist(), (seed, options)
        assert (ours.sequences_scores is None) == (theirs.sequences_scores is None)
        if theirs.sequences_scores is not None:
            require_near(ours.sequences_scores, theirs.sequences_scores, f"{seed}: {options}")
            for normalize in (False, True):
                chosen = (
                    model.compute_transition_scores(of.sequences, of.scores, of.beam_indices, normalize)
                    for model, of in ((pair.ours, ours), (pair.theirs, theirs))
                )
                require_near(next(chosen), next(chosen), f"{seed}: {options}")


def test_embeddings_go_on_as_theirs_do(pair: Pair, pytestconfig: pytest.Config) -> None:
    for seed in seeds(pytestconfig, 0.5):
        rng = random.Random(seed)
        prompt, mask = random_prompt(rng)
        options = with_functions(rng, random_options(rng, sampled=False), prompt, criteria=False)
        # The one here looks at the last id, and there may be none.
        options.pop("prefix_allowed_tokens_fn", None)
        limits = [{"max_new_tokens": 5}, {"max_length": len(prompt[0]) + 4}]
        options |= rng.choice(limits) | ({"num_beams": 2} if rng.random() < 0.3 else {})
        width = pair.ours.config.hidden_size
        drawn = torch.randn(len(prompt), len(prompt[0]), width, generator=torch.Generator().manual_seed(seed))
        if "num_beams" in options:
            drop_ties(options)
        options["inputs_embeds"] = Made(lambda array, drawn=drawn: array(drawn.tolist()))
        if rng.random() < 0.5:
            options["input_ids"] = Made(lambda array, prompt=prompt: array(prompt))
        ours, theirs = both(pair, None, mask, options)
        assert ours.tolist() == theirs.tolist(), (seed, options)


def test_guesses_change_nothing(pair: Pair, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    smaller = Pair(write_checkpoint(tmp_path, num_hidden_layers=1))
    for seed in seeds(pytestconfig, 0.5):
        rng = random.Random(seed)
        prompt, _ = random_prompt(rng)
        prompt = prompt[:1]
        mask = [[0] * (k := rng.randrange(len(prompt[0]))) + [1] * (len(prompt[0]) - k)] if rng.random() < 0.5 else None
        options = random_options(rng, sampled=False) | {"max_new_tokens": rng.randint(1, 16)}
        if rng.random() < 0.2:
            options["prefix_allowed_tokens_fn"] = few_follow(rng.randrange(VOCAB))
        options |= random_outputs(rng)
        plain, theirs = both(pair, prompt, mask, options)
        guessing = rng.choice(
            [
                {"prompt_lookup_num_tokens": rng.randint(1, 6), "max_matching_ngram_size": rng.randint(1, 3)},
                {"assistant_model": smaller.ours, "num_assistant_tokens": rng.randint(1, 5)},
                {"assistant_model": pair.ours, "num_assistant_tokens_schedule": "heuristic"},
            ]
        )
        shown = None if mask is None else mx.array(mask)
        ours = generate(pair.ours, mx.array(prompt), attention_mask=shown, **options, **guessing)
        require_same_outputs(ours, theirs, f"{seed}: {options} {guessing}")
        assert ours.past_key_values[0].offset == plain.past_key_values[0].offset, (seed, guessing)
