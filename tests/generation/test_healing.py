"""Prompts that end inside a word or in a space: what comes goes on byte for byte, by the likeliest tokens that can."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import mlx.core as mx
import pytest
from bundle_samples import write_text_checkpoint
from tokenizer_samples import EOS, FIRST_BYTE

from helium_mlx import HeliumEngine, HeliumForCausalLM, HeliumTokenizer, generate, load, make_cache, stream_generate
from helium_mlx.errors import GenerationError
from helium_mlx.generate import main
from helium_mlx.generation.completion import GenerationChunk, StopStrings
from helium_mlx.generation.healing import HealedText, cut_back

TEXT = "the file  is of Zoé, l'été à 中文 👩‍🚀\nBonjour of"
Loaded = tuple[HeliumForCausalLM, HeliumTokenizer]


@pytest.fixture(scope="module", params=["json", "sentencepiece"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    directory = tmp_path_factory.mktemp(request.param)
    # Large weights, so that logits differ and texts vary.
    return load(write_text_checkpoint(directory, tokenizer=request.param, num_hidden_layers=1, initializer_range=0.5))


@pytest.fixture
def json_loaded(tmp_path: Path) -> Loaded:
    return load(write_text_checkpoint(tmp_path / "checkpoint", num_hidden_layers=1, initializer_range=0.5))


def run(loaded: Loaded, prompt: str, **options: object) -> list[GenerationChunk]:
    options = {"heal": True, "ignore_eos": True, "max_tokens": 30, **options}
    return list(stream_generate(*loaded, prompt, **options))  # pyright: ignore[reportArgumentType]


def text_of(chunks: list[GenerationChunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 3}])
def test_at_every_character_prompt_and_text_are_what_their_tokens_say(loaded: Loaded, options: dict) -> None:
    tokenizer = loaded[1]
    for end in range(1, len(TEXT) + 1):
        ids = tokenizer.encode(TEXT[:end])
        chunks = run(loaded, TEXT[:end], **options)
        kept = ids[: chunks[0].prompt_tokens]
        tokens = [*kept, *(chunk.token for chunk in chunks)]
        assert tokenizer.decode(tokens) == tokenizer.decode(ids) + text_of(chunks)
        assert not any(chunk.leading_space for chunk in chunks)


def test_the_first_tokens_are_the_most_probable_that_lead_to_the_bytes(loaded: Loaded) -> None:
    model, tokenizer = loaded
    for end in range(1, len(TEXT) + 1, 3):
        chunks, ids = run(loaded, TEXT[:end], max_tokens=12), tokenizer.encode(TEXT[:end])
        kept = ids[: chunks[0].prompt_tokens]
        expected = list(by_trying_all(model, tokenizer, kept, b"".join(map(tokenizer.token_bytes, ids[len(kept) :]))))
        assert [chunk.token for chunk in chunks][: len(expected)] == expected[:12]


def by_trying_all(model: HeliumForCausalLM, tokenizer: HeliumTokenizer, kept: list[int], held: bytes) -> Iterator[int]:
    """The greedy tokens that spell `held`, each found by asking every token of the vocabulary."""
    left_out = {*tokenizer.special_ids, *tokenizer.reserved_ids}
    left_out.add(FIRST_BYTE + 0x20)
    pieces = {index: tokenizer.token_bytes(index) for index in range(len(tokenizer)) if index not in left_out}

    def leads(rest: bytes) -> bool:
        return not rest or any(map(leads_from(rest), filter(None, pieces.values())))

    def leads_from(rest: bytes) -> Callable[[bytes], bool]:
        return lambda piece: piece.startswith(rest) or (rest.startswith(piece) and leads(rest[len(piece) :]))

    tokens = list(kept)
    while held:
        logits = cast("list[float]", model(mx.array([tokens])).logits[0, -1].tolist())
        fitting = [index for index, piece in pieces.items() if piece and leads_from(held)(piece)]
        best = max(fitting, key=lambda index: logits[index])
        yield best
        tokens.append(best)
        held = held[len(pieces[best]) :]


@pytest.mark.parametrize(
    ("prompt", "cut"),
    [
        ("of the fi", " fi"),
        ("of the file", " file"),
        ("of the ", " "),
        ("of the   ", "   "),
        ("of the\n", ""),
        ("of the.", ""),
        ("of l'ét", " l'ét"),
        ("of 中", " 中"),
        ("of cafe\u0301", " cafe\u0301"),
        ("", ""),
        ("fi", " fi"),
    ],
)
def test_the_last_word_or_the_spaces_at_the_end_are_cut(json_loaded: Loaded, prompt: str, cut: str) -> None:
    tokenizer = json_loaded[1]
    ids = tokenizer.encode(prompt)
    count = cut_back(tokenizer, ids)
    assert b"".join(map(tokenizer.token_bytes, ids[len(ids) - count :])) == cut.encode()


def test_of_a_long_word_no_more_than_eight_tokens_are_cut_and_no_part_of_a_character(json_loaded: Loaded) -> None:
    tokenizer = json_loaded[1]
    for word in ("qzqzqzqzqzqzqz", "文文文文文文", "é文é文é文q文"):
        ids = tokenizer.encode(word)
        count = cut_back(tokenizer, ids)
        assert 5 <= count <= 8
        b"".join(map(tokenizer.token_bytes, ids[len(ids) - count :])).decode()


def test_what_is_cut_leaves_room_in_the_context(json_loaded: Loaded) -> None:
    model, tokenizer = json_loaded
    context = model.config.max_position_embeddings
    prompt = "of " * context
    ids = tokenizer.encode(prompt)[: context - 2]
    ids += tokenizer.encode("fi", add_special_tokens=False)[-2:]
    chunks = list(stream_generate(model, tokenizer, ids, heal=True, ignore_eos=True, max_tokens=30))
    assert len(chunks) == cut_back(tokenizer, ids) > 0


def test_what_a_long_prompt_costs_the_text_does_not_grow_with_it(
    json_loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, fed = json_loaded[1], list[int]()
    monkeypatch.setattr(tokenizer, "detokenizer", lambda: Counting(fed))
    kept = tokenizer.encode("the file is of " * 20)
    HealedText(tokenizer, StopStrings(()), frozenset(), kept, kept[-2:])
    assert len(fed) < 10


class Counting:
    """Notes the tokens that it is fed."""

    def __init__(self, fed: list[int]) -> None:
        self.fed = fed

    def add_token(self, token: int) -> str:
        self.fed.append(token)
        return ""


def test_special_tokens_stay(json_loaded: Loaded) -> None:
    tokenizer = json_loaded[1]
    assert cut_back(tokenizer, [1]) == 0
    assert cut_back(tokenizer, [1, EOS]) == 0
    assert cut_back(tokenizer, [1, EOS, *tokenizer.encode("file", add_special_tokens=False)]) == 1


def test_without_heal_nothing_changes(json_loaded: Loaded) -> None:
    plain = [chunk.token for chunk in stream_generate(*json_loaded, "of the.", max_tokens=12, ignore_eos=True)]
    assert [chunk.token for chunk in run(json_loaded, "of the.", max_tokens=12)] == plain


def test_after_the_cut_bytes_decoding_goes_on_as_from_the_same_tokens(json_loaded: Loaded) -> None:
    model, tokenizer = json_loaded
    healed = [chunk.token for chunk in run(json_loaded, "of the fi", max_tokens=20)]
    kept = tokenizer.encode("of the fi")
    kept = kept[: len(kept) - cut_back(tokenizer, kept)]
    for count in (3, 8):
        rest = [
            chunk.token
            for chunk in stream_generate(
                model, tokenizer, kept + healed[:count], max_tokens=20 - count, ignore_eos=True
            )
        ]
        assert rest == healed[count:]


def test_prompt_lookup_changes_nothing_but_the_passes(json_loaded: Loaded) -> None:
    prompt = "the file is of the file is of the fi"
    plain = [chunk.token for chunk in run(json_loaded, prompt)]
    assert [chunk.token for chunk in run(json_loaded, prompt, prompt_lookup=6)] == plain


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_completion_may_end_within_the_cut_bytes(json_loaded: Loaded, count: int) -> None:
    chunks = run(json_loaded, "of the 文文", max_tokens=count)
    assert len(chunks) == count
    assert chunks[-1].finish_reason == "length"
    assert text_of(chunks) == ""


def test_logprobs_and_stop_strings_are_those_of_the_text_that_follows(json_loaded: Loaded) -> None:
    chunks = run(json_loaded, "of the fi", logprobs=2)
    assert all(chunk.logprob is not None and len(chunk.top_logprobs) == 2 for chunk in chunks)
    text = text_of(chunks)
    stopped = run(json_loaded, "of the fi", stop=[text[4:6], "fi"])
    assert text_of(stopped) == text[: min(text.find(stop) for stop in (text[4:6], "fi") if stop in text)]


def test_sampled_beginnings_vary_with_the_seed_and_keep_the_bytes(json_loaded: Loaded) -> None:
    first = {run(json_loaded, "of the fi", temperature=2.0, seed=seed, max_tokens=1)[0].token for seed in range(20)}
    assert len(first) > 1
    pieces = set(map(json_loaded[1].token_bytes, first))
    assert all(piece.startswith(b" fi") or b" fi".startswith(piece) for piece in pieces)


def test_bans_are_kept_and_named_where_nothing_is_left(json_loaded: Loaded) -> None:
    tokenizer = json_loaded[1]
    usual = run(json_loaded, "of the fi", max_tokens=1)[0].token
    assert usual not in [chunk.token for chunk in run(json_loaded, "of the fi", banned_ids=[usual])]
    everything = [index for index in range(len(tokenizer)) if tokenizer.token_bytes(index)[:1] == b" "]
    with pytest.raises(GenerationError, match="heal: no token that is not banned begins with ' fi', the end of the"):
        run(json_loaded, "of the fi", banned_ids=everything)


def test_an_engine_heals_as_a_stream_does(json_loaded: Loaded, tmp_path: Path) -> None:
    with HeliumEngine(tmp_path / "checkpoint") as engine:
        healed = engine.complete("of the fi", heal=True, ignore_eos=True, max_tokens=30)
    assert healed == text_of(run(json_loaded, "of the fi"))


def test_what_cannot_be_healed_is_refused(json_loaded: Loaded) -> None:
    cache = make_cache(json_loaded[0])
    generate(*json_loaded, "of the", max_tokens=1, cache=cache)
    with pytest.raises(GenerationError, match="heal needs the whole prompt, and cache holds 3 tokens of it"):
        run(json_loaded, "fi", cache=cache)
    with pytest.raises(GenerationError, match="heal is for a single prompt, and a list of prompts came"):
        generate(*json_loaded, ["of the fi"], heal=True)
    with pytest.raises(GenerationError, match="heal is 'yes'"):
        run(json_loaded, "fi", heal="yes")


def test_the_command_heals_and_says_what_does_not_go_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "demo", "--prompt", "Once upon a ti", "--heal", "--max-tokens", "6", "--quiet"]) == 0
    assert capsys.readouterr().out.startswith("me there was")
    assert main(["--model", "demo", "--prompt", "Once ", "--heal", "--max-tokens", "1"]) == 0
    assert "ends in a space" not in capsys.readouterr().err
    assert main(["--model", "demo", "--prompt", "Once", "--heal", "--prompt-cache", "x.safetensors"]) == 2
    assert "--heal takes back tokens that --prompt-cache keeps; leave one out" in capsys.readouterr().err
