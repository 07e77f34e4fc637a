"""Tokens that only the files beside a tokenizer declare, held against transformers."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizer_samples as samples

from helium_mlx.bundle.tokenizer import write_tokenizer
from helium_mlx.errors import TokenizerError
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

FIRST_FREE = samples.FIRST_PIECE + len(samples.PIECES)
TEXT = "the<new> file<|im_sp_07|> is <new>of"

CASES: dict[str, dict[str, dict[str, object]]] = {
    "a special token by its id": {
        "tokenizer_config": {"added_tokens_decoder": {str(FIRST_FREE): {"content": "<new>", "special": True}}}
    },
    "flags of a token that is there": {
        "tokenizer_config": {
            "added_tokens_decoder": {
                "13": {
                    "content": "<|im_sp_07|>", "special": True, "lstrip": True, "rstrip": False, "single_word": False,
                    "normalized": False,
                }
            }
        }
    },
    "a named token": {"tokenizer_config": {"eos_token": "<new>"}},
    "a name for a piece": {"tokenizer_config": {"unk_token": "<unk>"}},
    "others": {"tokenizer_config": {"additional_special_tokens": ["<new>"]}},
    "others by name": {"tokenizer_config": {"extra_special_tokens": {"image_token": "<new>"}}},
    "the older map": {"special_tokens_map": {"pad_token": {"content": "<new>", "lstrip": True}}},
    "the older list": {"added_tokens": {"<new>": FIRST_FREE}},
    "the older list, of a token that the file has": {"added_tokens": {"<|im_sp_07|>": 13}},
    "a name for a token that is not special": {
        "tokenizer_config": {
            "eos_token": "<new>", "added_tokens_decoder": {str(FIRST_FREE): {"content": "<new>", "special": False}},
        }
    },
    "a name of one's own": {"tokenizer_config": {"foo_token": "<new>"}},
    "an object that does not say it is a token": {"tokenizer_config": {"foo_token": {"content": "<new>"}}},
    "an object that says so": {"tokenizer_config": {"foo_token": {"__type": "AddedToken", "content": "<new>"}}},
    "special tokens split": {"tokenizer_config": {"split_special_tokens": True}},
}  # fmt: skip


def declare(directory: Path, files: dict[str, dict[str, object]]) -> Path:
    samples.write_config(directory, vocab_size=1000)
    base: dict[str, object] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for name, values in ({"tokenizer_config": {}} | files).items():
        (directory / f"{name}.json").write_text(json.dumps(base | values if name == "tokenizer_config" else values))
    return directory


@pytest.mark.parity
@pytest.mark.parametrize("name", CASES)
def test_declared_tokens_are_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    from transformers import PreTrainedTokenizerFast

    directory = declare(samples.write_json_checkpoint(tmp_path), CASES[name])
    reference, tokenizer = (
        PreTrainedTokenizerFast.from_pretrained(directory),
        HeliumTokenizer.from_pretrained(directory),
    )
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    assert ids == reference(TEXT, add_special_tokens=False).input_ids
    assert len(tokenizer) == len(reference)
    for skip in (True, False):
        assert tokenizer.decode(ids, skip_special_tokens=skip) == reference.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("name", CASES)
def test_what_is_declared_streams_and_is_saved(tmp_path: Path, name: str) -> None:
    tokenizer = HeliumTokenizer.from_pretrained(declare(samples.write_json_checkpoint(tmp_path), CASES[name]))
    ids = tokenizer.encode(TEXT)
    detokenizer = tokenizer.detokenizer()
    assert "".join([*map(detokenizer.add_token, ids), detokenizer.finish()]) == tokenizer.decode(ids)
    tokenizer.save_pretrained(tmp_path / "saved")
    samples.write_config(tmp_path / "saved", vocab_size=1000)
    assert HeliumTokenizer.from_pretrained(tmp_path / "saved").encode(TEXT) == ids


def test_what_the_file_has_already_changes_nothing(tmp_path: Path) -> None:
    entry = {"content": "</s>", "special": True, "lstrip": False, "rstrip": False, "single_word": True}
    again = {"eos_token": "</s>", "added_tokens_decoder": {"2": {**entry, "normalized": False}}}
    tokenizer = HeliumTokenizer.from_pretrained(
        declare(samples.write_json_checkpoint(tmp_path), {"tokenizer_config": again})
    )
    assert not tokenizer.is_extended
    plain = HeliumTokenizer.from_pretrained(samples.write_json_checkpoint(tmp_path / "plain"))
    assert tokenizer.encode(TEXT) == plain.encode(TEXT)


def test_added_tokens_beside_a_sentencepiece_model_are_found_shown_and_streamed(tmp_path: Path) -> None:
    files: dict[str, dict[str, object]] = {
        "added_tokens": {"<new>": FIRST_FREE, "<end>": FIRST_FREE + 1},
        "special_tokens_map": {"eos_token": "<end>"},
    }
    tokenizer = HeliumTokenizer.from_pretrained(declare(samples.write_sentencepiece_checkpoint(tmp_path), files))
    ids = tokenizer.encode("the<new> file<end>")
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", "▁the", "<new>", "▁▁", "file", "<end>"]
    assert len(tokenizer) == FIRST_FREE + 2
    assert tokenizer.convert_tokens_to_ids("<end>") == FIRST_FREE + 1
    for skip, text in ((True, "the<new>  file"), (False, "the<new>  file<end>")):
        detokenizer = tokenizer.detokenizer(skip_special_tokens=skip)
        streamed = "".join([*map(detokenizer.add_token, ids), detokenizer.finish()])
        assert streamed == tokenizer.decode(ids, skip_special_tokens=skip) == text


@pytest.mark.parametrize("write", [samples.write_json_checkpoint, samples.write_sentencepiece_checkpoint])
def test_a_bundle_does_not_leave_declared_tokens_out(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    directory = declare(write(tmp_path / "checkpoint"), {"added_tokens": {"<new>": FIRST_FREE}})
    with pytest.raises(TokenizerError, match="declares tokens in a file beside its tokenizer's"):
        write_tokenizer(HeliumTokenizer.from_pretrained(directory), tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer_config": {"added_tokens_decoder": []}}, "added_tokens_decoder .*; expected tokens by their ids"),
        ({"tokenizer_config": {"added_tokens_decoder": {"x": {}}}}, "expected tokens by their ids"),
        ({"tokenizer_config": {"added_tokens_decoder": {"9": {"content": 5}}}}, "declares the token"),
        (
            {"tokenizer_config": {"eos_token": "x", "added_tokens_decoder": {"9": {"content": ["x"]}}}},
            "declares the token",
        ),
        ({"tokenizer_config": {"eos_token": {"content": "x", "lstrip": 1}}}, "declares the token"),
        ({"tokenizer_config": {"extra_special_tokens": "x"}}, "has extra_special_tokens 'x'; expected a list"),
        ({"tokenizer_config": {"add_eos_token": True, "eos_token": "</s>"}}, "has add_eos_token"),
        ({"added_tokens": {"x": "many"}}, "has the id 'many'; expected a whole number"),
        ({"added_tokens": {f"<{number}>": number for number in range(10_001)}}, "declares 10001 tokens; at most 10000"),
        ({"added_tokens": {"<new>": 1000}}, None),
    ],
)
def test_what_cannot_be_declared_is_named(
    tmp_path: Path, files: dict[str, dict[str, object]], message: str | None
) -> None:
    directory = declare(samples.write_json_checkpoint(tmp_path), files)
    if message is None:
        # As in transformers, the next free id is taken, whatever is declared.
        assert FIRST_FREE in HeliumTokenizer.from_pretrained(directory).encode(TEXT)
        return
    with pytest.raises(TokenizerError, match=message) as caught:
        HeliumTokenizer.from_pretrained(directory)
    assert "\n" not in str(caught.value)
