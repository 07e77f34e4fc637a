"""The bundle's tokenizer gives what the checkpoint's does, from SentencePiece and the recipe alone."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizer_samples import (
    BOS,
    FIRST_BYTE,
    NEWLINE,
    write_json_checkpoint,
    write_sentencepiece_checkpoint,
)

from helium_mlx.bundle.tokenizer import BundleTokenizer, TokenizerRecipe, write_tokenizer
from helium_mlx.errors import TokenizerError
from helium_mlx.files.hub import DEMO_DIRECTORY
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

Pair = tuple[HeliumTokenizer, BundleTokenizer]

# What is cut, what is spelled out, what is in bytes, and what stands beside a word.
ATOMS = [
    "a", "the", "file", " ", "  ", "\n", "\n\n", "é", "\u00a0", "😀", "👨‍👩‍👧", "<s>", "</s>", "<0x41>", "<0x0A>",
    "<|im_sp_05|>", "▁", "中", "_", "9", "\u0301", "\u200d", "\t", "\r", "\0", ".", "²", "Ⅷ", "<", "0x41>", "ⓐ", "🅰",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(ATOMS) | st.characters(exclude_categories=["Cs"]), max_size=8).map("".join)


def pair(source: Path, directory: Path) -> Pair:
    directory.mkdir()
    tokenizer = HeliumTokenizer.from_pretrained(source)
    recipe = TokenizerRecipe.from_dict(json.loads(json.dumps(write_tokenizer(tokenizer, directory).to_dict())))
    return tokenizer, BundleTokenizer(directory / "tokenizer.model", recipe, tokenizer.bos_token_id)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Pair]:
    root = tmp_path_factory.mktemp("tokenizers")
    sources = [
        DEMO_DIRECTORY,
        write_json_checkpoint(root / "json"),
        write_sentencepiece_checkpoint(root / "kept", add_dummy_prefix=False),
        write_sentencepiece_checkpoint(root / "first"),
        write_sentencepiece_checkpoint(root / "every", remove_extra_whitespaces=True),
    ]
    return [pair(source, root / f"bundle-{index}") for index, source in enumerate(sources)]


@given(TEXTS)
@example("")
@example("the\nfile")
@example("a<s>b <s> <s>a")
@example("<0x41><0x0A> x<0x41>y")
@example("      ")
@example("  \x0003a3   ")
@example("<|im_sp_05|>\U00031350")
@settings(max_examples=200, deadline=None)
def test_every_text_has_the_ids_that_the_checkpoint_gives(pairs: list[Pair], text: str) -> None:
    for tokenizer, bundle in pairs:
        if "<unk>" not in text:
            assert bundle.encode(text) == tokenizer.encode(text)


def test_a_spelled_unk_is_its_id_among_known_characters(pairs: list[Pair]) -> None:
    for tokenizer, bundle in pairs:
        assert bundle.encode("the <unk> file") == tokenizer.encode("the <unk> file")


@given(st.lists(st.integers(0, 435) | st.integers(FIRST_BYTE, FIRST_BYTE + 255), max_size=12))
@example([NEWLINE, FIRST_BYTE + 0xC3, NEWLINE])
@example([FIRST_BYTE + 0xC3, BOS, FIRST_BYTE + 0xA9])
@settings(max_examples=200, deadline=None)
def test_every_stream_has_the_pieces_that_the_checkpoint_gives(pairs: list[Pair], ids: list[int]) -> None:
    for tokenizer, bundle in pairs:
        reference, candidate = tokenizer.detokenizer(), bundle.detokenizer()
        for index in ids:
            assert candidate.add_token(index) == reference.add_token(index)
        assert candidate.finish() == reference.finish()


def test_of_added_tokens_that_begin_together_the_longest_is_found(tmp_path: Path) -> None:
    source = write_json_checkpoint(tmp_path / "source")
    values = json.loads((source / "tokenizer.json").read_text())
    size = len(values["model"]["vocab"])
    for index, content in enumerate(("\n\n", "\n\n\n")):
        values["added_tokens"].append(values["added_tokens"][-1] | {"id": size + index, "content": content})
    (source / "tokenizer.json").write_text(json.dumps(values))
    tokenizer, bundle = pair(source, tmp_path / "bundle")
    for text in ("the\nfile", "the\n\nfile", "\n\n\n\n\n", "a\n\n\n\na"):
        assert bundle.encode(text) == tokenizer.encode(text)
    assert bundle.encode("\n\n\n\n\n") == [BOS, size + 1, size]


def test_a_sentencepiece_model_that_is_followed_is_copied(tmp_path: Path) -> None:
    source = write_sentencepiece_checkpoint(tmp_path / "source")
    pair(source, tmp_path / "bundle")
    assert (tmp_path / "bundle/tokenizer.model").read_bytes() == (source / "tokenizer.model").read_bytes()
    assert not (tmp_path / "bundle/tokenizer.json").exists()


def test_a_tokenizer_json_that_is_followed_is_copied(tmp_path: Path) -> None:
    source = write_json_checkpoint(tmp_path / "source")
    pair(source, tmp_path / "bundle")
    assert (tmp_path / "bundle/tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


def without_byte_fallback(values: dict) -> None:
    values["model"]["byte_fallback"] = False


def with_lowercase(values: dict) -> None:
    values["normalizer"]["normalizers"].append({"type": "Lowercase"})


def with_digits_split(values: dict) -> None:
    values["pre_tokenizer"]["pretokenizers"].append({"type": "Digits", "individual_digits": True})


def with_newlines_split_late(values: dict) -> None:
    values["added_tokens"].pop()


def with_stripping_token(values: dict) -> None:
    values["added_tokens"][0]["lstrip"] = True


def with_plain_decoder(values: dict) -> None:
    values["decoder"] = {"type": "Fuse"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without_byte_fallback, "model"),
        (with_lowercase, "normalizer"),
        (with_digits_split, "pre-tokenizer"),
        (with_newlines_split_late, "pre-tokenizer"),
        (with_stripping_token, "added token"),
        (with_plain_decoder, "decoder"),
    ],
)
def test_steps_that_no_recipe_states_are_refused(tmp_path: Path, change: Callable[[dict], None], said: str) -> None:
    source = write_json_checkpoint(tmp_path / "source")
    values = json.loads((source / "tokenizer.json").read_text())
    change(values)
    (source / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(TokenizerError, match=said):
        pair(source, tmp_path / "bundle")


@pytest.mark.parametrize(
    "change",
    [
        {"follows": None},
        {"decoder": {"kind": "none"}},
        {"decoder": {"kind": "sentencepiece", "dummy_prefix": "some"}},
        {"added_tokens": [{"content": "", "id": 1, "special": True, "single_word": True}]},
        {"literals": [{"content": "a"}]},
    ],
)
def test_a_malformed_recipe_is_refused(tmp_path: Path, change: dict) -> None:
    recipe = write_tokenizer(HeliumTokenizer.from_pretrained(DEMO_DIRECTORY), tmp_path).to_dict()
    with pytest.raises(TokenizerError, match="manifest"):
        TokenizerRecipe.from_dict(recipe | change)
