"""Shared scoring against each continuation alone, in one plain forward pass."""

import random
from typing import cast

import mlx.core as mx
import pytest
from tiny_checkpoints import CaseLoader

from helium_mlx.evaluation import scoring
from helium_mlx.evaluation.scoring import Answer, Continuation, score_continuations
from helium_mlx.model.helium import HeliumForCausalLM


def alone(model: HeliumForCausalLM, continuation: Continuation) -> Answer:
    logits = model(mx.array([continuation.inputs])).logits[0].astype(mx.float32)
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    tokens = mx.array(continuation.tokens[1:])
    own = mx.take_along_axis(logprobs, tokens[:, None], axis=-1)[-continuation.length :]
    same = (logits.argmax(axis=-1) == tokens)[-continuation.length :]
    return Answer(cast(float, own.sum().item()), bool(same.all().item()))


def questions(vocab_size: int) -> list[Continuation]:
    """Return choices of questions, some after one of two beginnings, some of one token, some equal, some greedy."""
    draw = random.Random(0)
    shots = [[draw.randrange(vocab_size) for _ in range(70)] for _ in range(2)]
    found = []
    for beginning in ([], shots[0][:3], shots[0], shots[0], shots[1], shots[1], shots[1][:69]):
        context = [1, *beginning, *(draw.randrange(vocab_size) for _ in range(draw.choice([1, 5, 20])))]
        for length in (1, 1, 2, 3, 7):
            answer = [draw.choice([5, 6]) for _ in range(length)]
            found.append(Continuation((*context, *answer), length))
    return found


@pytest.mark.parametrize("batch_size", [1, 2, 16, 100])
@pytest.mark.parametrize("case", ["helium-gqa-bias", "llama-mqa-tied"])
@pytest.mark.parametrize("step", [16, 512])
def test_answers_are_those_of_each_alone(
    load_case: CaseLoader, monkeypatch: pytest.MonkeyPatch, case: str, batch_size: int, step: int
) -> None:
    monkeypatch.setattr(scoring, "STEP", step)
    model = load_case(case)
    continuations = questions(model.config.vocab_size)
    greedy = alone(model, continuations[0])
    # What greedy decoding would say is asked too.
    first = model(mx.array([continuations[0].inputs])).logits[0, -1].argmax().item()
    continuations.append(Continuation((*continuations[0].inputs, cast(int, first)), 1))
    found = dict(score_continuations(model, continuations, batch_size=batch_size))
    assert sorted(found) == list(range(len(continuations)))
    for index, continuation in enumerate(continuations):
        expected = alone(model, continuation)
        assert found[index].logprob == pytest.approx(expected.logprob, abs=1e-4)
        assert found[index].is_greedy == expected.is_greedy
    assert found[len(continuations) - 1].is_greedy and found[0].logprob == pytest.approx(greedy.logprob, abs=1e-4)


def test_what_questions_share_is_computed_once(load_case: CaseLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_case("helium-mha")
    run = model.model.run
    tokens: list[int] = []

    def counted(h: mx.array, *args: object, **kwargs: object) -> object:
        tokens.append(h.shape[1])
        return run(h, *args, **kwargs)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(model.model, "run", counted, raising=False)
    shots = tuple(range(1, 60))
    asked = [Continuation((*shots, 61 + q, 70, 80 + c, 90 + c), 2) for q in range(8) for c in range(4)]
    assert len(list(score_continuations(model, asked, batch_size=4))) == 32
    # The examples, then of each question its two tokens and a token for each choice.
    assert sum(tokens) == len(shots) + 8 * (2 + 4)


def test_the_last_layer_computes_what_is_wanted_only(load_case: CaseLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_case("helium-mha")
    mlp, rows = model.model.layers[-1].mlp, list[int]()

    class Counting(type(mlp)):
        def __call__(self, x: mx.array, residual: mx.array | None = None) -> mx.array:
            rows.append(x.shape[1])
            return super().__call__(x, residual)

    monkeypatch.setattr(scoring, "STEP", 16)
    monkeypatch.setattr(mlp, "__class__", Counting)
    shots = tuple(range(1, 40))
    letters = [Continuation((*shots, 80 + c), 1) for c in range(4)]
    assert len(list(score_continuations(model, letters, batch_size=4))) == 4
    # A step of the examples needs no position, the last one its last.
    assert rows == [1, 1, 1]
    rows.clear()
    cloze = [Continuation((*shots, 80 + c, 90 + c), 2) for c in range(4)]
    assert len(list(score_continuations(model, cloze, batch_size=4))) == 4
    assert rows == [1, 1, 1, 4]


def test_frequencies_that_depend_on_the_length_are_those_of_each_text_alone(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    from tiny_checkpoints import write_checkpoint

    from helium_mlx.model.loading import load_model

    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 8, "long_factor": [3.0] * 8,
            "factor": 4.0, "original_max_position_embeddings": 32}  # fmt: skip
    model = load_model(write_checkpoint(tmp_path_factory.mktemp("longrope"), rope_parameters=rope))
    context = tuple(range(1, 30))
    asked = [Continuation((*context, *range(60, 60 + n)), n) for n in (1, 2, 3, 6)]
    found = dict(score_continuations(model, asked, batch_size=16))
    for index, continuation in enumerate(asked):
        assert found[index].logprob == pytest.approx(alone(model, continuation).logprob, abs=1e-4)
