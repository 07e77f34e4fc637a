"""`score` against one pass over the whole text and plain Python; against transformers: `parity/`."""

import math
from pathlib import Path
from typing import cast

import mlx.core as mx
import pytest
from tiny_checkpoints import config_values, write_checkpoint

import helium_mlx
from helium_mlx import (
    ContextOverflowError,
    GenerationError,
    HeliumConfig,
    HeliumForCausalLM,
    HeliumTokenizer,
    score,
    stream_generate,
)
from helium_mlx.model.loading import load_model

TEXT = "Once upon a time there was a cat, called Zoë.\nShe said: “bonjour”."


@pytest.fixture(scope="module")
def demo() -> tuple[HeliumForCausalLM, HeliumTokenizer]:
    return helium_mlx.load("demo", dtype="float32")


def plain_logprobs(model: HeliumForCausalLM, tokens: list[int]) -> list[dict[int, float]]:
    """For each token but the first, the log-probabilities of the whole vocabulary: one pass, in double precision."""
    rows = cast("list[list[float]]", model(mx.array([tokens])).logits[0].astype(mx.float32).tolist())
    result: list[dict[int, float]] = []
    for row in rows[:-1]:
        total = max(row) + math.log(math.fsum(math.exp(x - max(row)) for x in row))
        result.append({token: x - total for token, x in enumerate(row)})
    return result


def test_each_token_has_its_log_probability_after_those_before_it(
    demo: tuple[HeliumForCausalLM, HeliumTokenizer],
) -> None:
    model, tokenizer = demo
    result = score(model, tokenizer, TEXT, top_logprobs=5)
    expected = plain_logprobs(model, result.tokens)
    assert result.logprobs[0] is None
    assert result.top_logprobs[0] == {}
    picked = [values[token] for values, token in zip(expected, result.tokens[1:], strict=True)]
    assert result.logprobs[1:] == pytest.approx(picked, abs=2e-5)
    for top, values in zip(result.top_logprobs[1:], expected, strict=True):
        assert list(top.values()) == sorted(top.values(), reverse=True)
        assert list(top.values()) == pytest.approx(sorted(values.values(), reverse=True)[:5], abs=2e-5)
        assert list(top.values()) == pytest.approx([values[token] for token in top], abs=2e-5)
    assert result.total == pytest.approx(sum(picked), abs=1e-3)
    assert result.perplexity == pytest.approx(math.exp(-sum(picked) / len(picked)), rel=1e-4)
    assert result.bits_per_byte == pytest.approx(-sum(picked) / math.log(2) / len(TEXT.encode()), rel=1e-4)


def test_a_text_has_exactly_one_bos_and_all_of_it_is_scored(demo: tuple[HeliumForCausalLM, HeliumTokenizer]) -> None:
    model, tokenizer = demo
    for text in (TEXT, "<s>" + TEXT):
        tokens = score(model, tokenizer, text).tokens
        assert tokens[0] == tokenizer.bos_token_id
        assert tokens[1] != tokenizer.bos_token_id
        assert tokens == tokenizer.encode(text)


@pytest.mark.parametrize("step", [1, 3, 64, 65, 4096])
def test_chunks_change_nothing(demo: tuple[HeliumForCausalLM, HeliumTokenizer], step: int) -> None:
    model, tokenizer = demo
    ids = tokenizer.encode(TEXT * 8)[:140]
    whole = score(model, tokenizer, ids, prefill_step_size=1000, top_logprobs=2)
    chunked = score(model, tokenizer, ids, prefill_step_size=step, top_logprobs=2)
    assert chunked.logprobs[1:] == pytest.approx(whole.logprobs[1:], abs=5e-5)
    assert chunked.tokens == whole.tokens
    assert chunked.texts == whole.texts
    assert [list(top) for top in chunked.top_logprobs] == [list(top) for top in whole.top_logprobs]


def test_a_generated_text_has_the_log_probabilities_that_it_was_generated_with(
    demo: tuple[HeliumForCausalLM, HeliumTokenizer],
) -> None:
    model, tokenizer = demo
    prompt = tokenizer.encode("The little dog")
    chunks = list(stream_generate(model, tokenizer, prompt, max_tokens=30, logprobs=3, temperature=0.9, seed=0))
    result = score(model, tokenizer, prompt + [chunk.token for chunk in chunks], top_logprobs=3)
    assert result.logprobs[len(prompt) :] == pytest.approx([chunk.logprob for chunk in chunks], abs=5e-5)
    for chunk, top in zip(chunks, result.top_logprobs[len(prompt) :], strict=True):
        assert top == pytest.approx(chunk.top_logprobs, abs=5e-5)


@pytest.mark.parametrize("text", [TEXT, "été 🐈‍⬛ 你好", " two  spaces ", "<|im_sp_07|>\x01"])
def test_texts_joined_are_the_text_as_decoded(demo: tuple[HeliumForCausalLM, HeliumTokenizer], text: str) -> None:
    model, tokenizer = demo
    result = score(model, tokenizer, text)
    assert "".join(result.texts) == tokenizer.decode(result.tokens)
    assert len(result.texts) == len(result.offsets) == len(result.tokens) == len(result.logprobs)
    joined = "".join(result.texts)
    for offset, piece in zip(result.offsets, result.texts, strict=True):
        assert joined[offset:].startswith(piece)
    assert result.bytes == len(text.encode())


def test_ids_are_used_as_they_are_and_the_first_is_not_scored(
    demo: tuple[HeliumForCausalLM, HeliumTokenizer],
) -> None:
    model, tokenizer = demo
    ids = tokenizer.encode("a cat and a dog", add_special_tokens=False)
    result = score(model, tokenizer, ids)
    assert result.tokens == ids
    expected = plain_logprobs(model, ids)
    assert result.logprobs[1:] == pytest.approx(
        [values[token] for values, token in zip(expected, ids[1:], strict=True)], abs=2e-5
    )
    assert result.bytes == len("".join(result.texts[1:]).encode())
    assert score(model, tokenizer, mx.array(ids)) == result


def test_the_head_never_sees_the_whole_text_nor_the_last_token(
    demo: tuple[HeliumForCausalLM, HeliumTokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = demo
    rows: list[int] = []
    logits = HeliumForCausalLM.logits

    def counted(self: HeliumForCausalLM, h: mx.array) -> mx.array:
        rows.append(h.shape[0])
        return logits(self, h)

    monkeypatch.setattr(HeliumForCausalLM, "logits", counted)
    ids = tokenizer.encode(TEXT * 12)[:201]
    score(model, tokenizer, ids, prefill_step_size=100)
    assert rows == [64, 36, 64, 36]


def test_memory_is_bounded_by_a_chunk_and_not_by_the_text() -> None:
    # A vocabulary so large that the logits of the whole text would be 82 MB, those of a chunk 41.
    config = HeliumConfig.from_dict(config_values(vocab_size=20_000, max_position_embeddings=1024))
    model, tokenizer = HeliumForCausalLM(config), helium_mlx.load("demo")[1]
    mx.eval(model.parameters())
    score(model, tokenizer, [1, 5])
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    score(model, tokenizer, [index % 2000 for index in range(1024)])
    assert mx.get_peak_memory() - before < 35e6


def test_bfloat16_models_are_scored_in_float32(demo: tuple[HeliumForCausalLM, HeliumTokenizer]) -> None:
    model, tokenizer = helium_mlx.load("demo", dtype="bfloat16")
    result = score(model, tokenizer, TEXT, top_logprobs=model.config.vocab_size)
    # A log-softmax in bfloat16 would be off by a few per cent.
    for top in result.top_logprobs[1:]:
        assert math.fsum(map(math.exp, top.values())) == pytest.approx(1, abs=1e-4)
    assert result.perplexity == pytest.approx(score(*demo, TEXT).perplexity, rel=0.1)


def test_texts_as_long_as_the_context_pass_and_longer_ones_are_refused(tmp_path: Path) -> None:
    model = load_model(write_checkpoint(tmp_path, max_position_embeddings=16))
    tokenizer = helium_mlx.load("demo")[1]
    assert len(score(model, tokenizer, [1] * 16).logprobs) == 16
    with pytest.raises(ContextOverflowError, match="the text has 17 tokens and the model's context is 16; score it in"):
        score(model, tokenizer, [1] * 17)


@pytest.mark.parametrize(
    ("text", "options", "error", "message"),
    [
        ("", {}, GenerationError, "the text has 1 tokens; a score needs two"),
        ([], {}, GenerationError, "the text has 0 tokens; a score needs two"),
        (b"abc", {}, GenerationError, "the text is bytes; give a string"),
        ([1, 2.5], {}, GenerationError, "text token 2.5 is not an id"),
        ([[1, 2]], {}, GenerationError, "text token [1, 2] is not an id"),
        ([1, True], {}, GenerationError, "text token True is not an id"),
        ([1, 2048], {}, GenerationError, "text token 2048 is not an id from 0 to vocab_size - 1 = 2047"),
        ([1, -1], {}, GenerationError, "text token -1"),
        ("a", {"top_logprobs": -1}, GenerationError, "top_logprobs is -1; it must be from 0 to vocab_size = 2048"),
        ("a", {"top_logprobs": 2049}, GenerationError, "top_logprobs is 2049"),
        ("a", {"top_logprobs": True}, GenerationError, "top_logprobs is True"),
        ("a", {"prefill_step_size": 0}, GenerationError, "prefill_step_size is 0; it must be a whole number"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_line(
    demo: tuple[HeliumForCausalLM, HeliumTokenizer],
    text: str,
    options: dict[str, int],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error) as caught:
        score(*demo, text, **options)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_an_array_of_one_row_is_scored_as_its_row(demo: tuple[HeliumForCausalLM, HeliumTokenizer]) -> None:
    ids = demo[1].encode(TEXT)
    assert score(*demo, mx.array([ids])) == score(*demo, ids)
