import base64
import hashlib
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypedDict, cast

import mlx.core as mx
import pytest
import sentencepiece
import tokenizer_samples as samples
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import run_code
from tokenizers import decoders, processors

from helium_mlx.bundle import sentencepiece_model
from helium_mlx.errors import TokenizerError
from helium_mlx.tokenizer import bounds
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

CASES = Path(__file__).parents[1] / "reference" / "tokenizer_cases.json"


class Case(TypedDict):
    text: str
    ids: list[int]
    ids_without_special: list[int]
    decoded: str
    decoded_with_special: str


@pytest.fixture(scope="session")
def json_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return samples.write_json_checkpoint(tmp_path_factory.mktemp("json"))


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return samples.write_sentencepiece_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def from_json(json_directory: Path) -> HeliumTokenizer:
    return HeliumTokenizer.from_pretrained(json_directory)


@pytest.fixture(scope="session")
def from_model(model_directory: Path) -> HeliumTokenizer:
    return HeliumTokenizer.from_pretrained(model_directory)


def rewrite_json(directory: Path, change: dict[str, object]) -> Path:
    """A `tokenizer.json` checkpoint with top-level fields of the file changed."""
    samples.write_json_checkpoint(directory)
    path = directory / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")
    return directory


# Texts that the two files read differently: pieces and decoded text by tokenizer.json, then by tokenizer.model.
ENCODING_DIFFERENCES = [
    ("the\nfile", "▁the \n ▁file", "the\n file", "▁the <0x0A> file", "the\nfile"),
    ("the\n\nfile", "▁the \n \n ▁file", "the\n\n file", "▁the <0x0A> <0x0A> file", "the\n\nfile"),
    ("the\n file", "▁the \n ▁▁ file", "the\n  file", "▁the <0x0A> ▁file", "the\n file"),
    ("the\r\nfile", "▁the \r \n ▁file", "the\r\n file", "▁the \r <0x0A> file", "the\r\nfile"),
    ("\nthe", "\n ▁the", "\n the", "▁ <0x0A> the", "\nthe"),
    ("\n", "\n", "\n", "▁ <0x0A>", "\n"),
    ("the\n", "▁the \n", "the\n", "▁the <0x0A>", "the\n"),
    ("<s> the", "<s> ▁▁ the", " the", "▁ <0x3C> s > ▁the", "<s> the"),
    ("<s>the", "▁ <s> the", "the", "▁ <0x3C> s > the", "<s>the"),
    ("the </s>", "▁the ▁ </s>", "the ", "▁the ▁ <0x3C> <0x2F> s >", "the </s>"),
    ("<0x41>", "▁ <0x41>", "A", "▁ <0x <0x34> 1 >", "<0x41>"),
    ("<unk>", "▁ <unk>", "<unk>", "▁ <0x3C> u n <0x6B> >", "<unk>"),
]
SAME = [" the  file ", "😀 中国 é", "a\u00a0b", "▁the", "\x00", ""]

BYTE = samples.FIRST_BYTE
THE = samples.FIRST_PIECE + samples.PIECES.index("▁the")
# Ids that the two files decode differently: by tokenizer.json without and with special tokens, then by tokenizer.model.
DECODING_DIFFERENCES = [
    ([0], "<unk>", "<unk>", " ⁇ "),
    ([THE, 0, THE], "the<unk> the", "the<unk> the", "the ⁇  the"),
    ([samples.BOS, THE], "the", "<s> the", "the"),
    ([samples.IM_START, THE], "the", "<|im_start|> the", "the"),
    ([BYTE + 0x20, THE], " the", " the", "  the"),
    ([BYTE + 0xF0, BYTE + 0x41], "�A", "�A", "�A"),
    ([BYTE + 0xC3, samples.EOS, BYTE + 0xA9], "é", "�</s>�", "��"),
]


@pytest.mark.parametrize(("text", "json_pieces", "json_text", "model_pieces", "model_text"), ENCODING_DIFFERENCES)
def test_the_two_files_differ_on_these_texts(
    from_json: HeliumTokenizer,
    from_model: HeliumTokenizer,
    text: str,
    json_pieces: str,
    json_text: str,
    model_pieces: str,
    model_text: str,
) -> None:
    for tokenizer, pieces, decoded in ((from_json, json_pieces, json_text), (from_model, model_pieces, model_text)):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert (" ".join(tokenizer.convert_ids_to_tokens(ids)), tokenizer.decode(ids)) == (pieces, decoded)


@pytest.mark.parametrize("text", SAME)
def test_the_two_files_agree_on_these_texts(from_json: HeliumTokenizer, from_model: HeliumTokenizer, text: str) -> None:
    assert from_json.encode(text) == from_model.encode(text)
    assert from_json.decode(from_json.encode(text)) == from_model.decode(from_json.encode(text))


@pytest.mark.parametrize(("ids", "json_text", "json_full", "model_text"), DECODING_DIFFERENCES)
def test_the_two_files_differ_on_these_ids(
    from_json: HeliumTokenizer,
    from_model: HeliumTokenizer,
    ids: list[int],
    json_text: str,
    json_full: str,
    model_text: str,
) -> None:
    assert from_json.decode(ids) == json_text
    assert from_json.decode(ids, skip_special_tokens=False) == json_full
    assert from_model.decode(ids) == from_model.decode(ids, skip_special_tokens=False) == model_text


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁")))
def test_sentencepiece_gives_every_text_back(from_model: HeliumTokenizer, text: str) -> None:
    assert from_model.decode(from_model.encode(text)) == text


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁<")))
def test_tokenizer_json_gives_every_text_back_with_a_space_after_newlines(
    from_json: HeliumTokenizer, text: str
) -> None:
    lines = text.split("\n")
    # The one leading space that decoding strips is the first segment's, or, after a leading newline, none.
    expected = "\n".join([lines[0], *(f" {line}" if line else "" for line in lines[1:])])
    assert from_json.decode(from_json.encode(text)) == expected


def test_tokenizer_json_is_the_one_followed(json_directory: Path, model_directory: Path, tmp_path: Path) -> None:
    for source in (json_directory / "tokenizer.json", model_directory / "tokenizer.model"):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    samples.write_config(tmp_path, vocab_size=1000)
    assert HeliumTokenizer.from_pretrained(tmp_path).decode([0]) == "<unk>"


def test_a_sentencepiece_model_under_kyutais_own_name_is_found(model_directory: Path, tmp_path: Path) -> None:
    content = (model_directory / "tokenizer.model").read_bytes()
    (tmp_path / "tokenizer_spm_48k_multi6_2.model").write_bytes(content)
    samples.write_config(tmp_path, vocab_size=1000)
    assert HeliumTokenizer.from_pretrained(str(tmp_path)).decode([0]) == " ⁇ "


def assert_as_transformers(tokenizer: HeliumTokenizer, case: Case) -> None:
    ids = list(case["ids"])
    assert tokenizer.decode(ids) == case["decoded"]
    assert tokenizer.decode(ids, skip_special_tokens=False) == case["decoded_with_special"]
    while ids[1:2] == [samples.BOS]:  # transformers puts its BOS before one that the text spells
        del ids[1]
    assert tokenizer.encode(case["text"]) == ids
    assert tokenizer.encode(case["text"], add_special_tokens=False) == case["ids_without_special"]


REFERENCE = json.loads(CASES.read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", REFERENCE["sample"]["cases"], ids=lambda case: ascii(case["text"][:12]))
def test_the_sample_is_read_as_transformers_reads_it(from_json: HeliumTokenizer, case: Case) -> None:
    assert_as_transformers(from_json, case)


def test_the_demo_is_read_as_transformers_reads_it() -> None:
    digest = hashlib.sha256((samples.DEMO / "tokenizer.json").read_bytes()).hexdigest()
    assert digest == REFERENCE["demo"]["sha256"], "run tests/reference/make_tokenizer_reference.py again"
    tokenizer = HeliumTokenizer.from_pretrained(samples.DEMO)
    for case in cast("list[Case]", REFERENCE["demo"]["cases"]):
        assert_as_transformers(tokenizer, case)


# --- special ids


def test_the_ids_come_from_the_configs(from_json: HeliumTokenizer, from_model: HeliumTokenizer) -> None:
    for tokenizer in (from_json, from_model):
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 3)
        assert tokenizer.eos_token_ids == (2,)
        assert len(tokenizer) == tokenizer.vocab_size == samples.FIRST_PIECE + len(samples.PIECES)


def test_generation_config_overrides_the_end_of_text(tmp_path: Path) -> None:
    samples.write_json_checkpoint(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 2, 5]}', encoding="utf-8")
    tokenizer = HeliumTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.eos_token_ids, tokenizer.eos_token_id) == ((5, 2), 5)


def test_a_list_of_ends_of_text_in_the_config_is_taken(tmp_path: Path) -> None:
    samples.write_json_checkpoint(tmp_path)
    samples.write_config(tmp_path, vocab_size=1000, eos_token_id=[2, 5])
    (tmp_path / "generation_config.json").write_text('{"bos_token_id": 4}', encoding="utf-8")
    tokenizer = HeliumTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids) == (1, (2, 5))


def test_generation_config_fills_what_the_config_lacks(tmp_path: Path) -> None:
    samples.write_json_checkpoint(tmp_path)
    samples.write_config(tmp_path, vocab_size=1000, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    (tmp_path / "generation_config.json").write_text(
        '{"bos_token_id": 1, "eos_token_id": 5, "pad_token_id": 0}', encoding="utf-8"
    )
    tokenizer = HeliumTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids, tokenizer.pad_token_id) == (1, (5,), 0)


def test_reserved_ids_are_found_by_name(tmp_path: Path) -> None:
    rows = samples.vocabulary(reserved_type=samples.NORMAL)
    rows.insert(samples.FIRST_PIECE, ("<|im_sp_x|>", -9.0, samples.NORMAL))
    del rows[50]
    for directory in (
        samples.write_json_checkpoint(tmp_path / "json", rows),
        samples.write_sentencepiece_checkpoint(tmp_path / "model", rows),
    ):
        tokenizer = HeliumTokenizer.from_pretrained(directory)
        assert tokenizer.reserved_ids == frozenset(range(6, 105))
        assert tokenizer.special_ids == {1, 2, 3}


def test_special_ids_are_those_left_out(from_json: HeliumTokenizer, from_model: HeliumTokenizer) -> None:
    for tokenizer in (from_json, from_model):
        assert tokenizer.special_ids == frozenset(range(1, samples.LAST_RESERVED + 1))
        assert tokenizer.decode(sorted(tokenizer.special_ids)) == ""


@pytest.mark.parametrize("template", [None, ["<s>", "$A"], ["$A"], ["<s>", "<s>", "$A"], ["</s>", "$A"]])
def test_exactly_one_bos_leads_whatever_the_post_processor_does(tmp_path: Path, template: list[str] | None) -> None:
    samples.write_json_checkpoint(tmp_path)
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    empty = tokenizers.processors.Sequence([])
    backend.post_processor = (
        empty
        if template is None
        else processors.TemplateProcessing(single=template, special_tokens=[("<s>", 1), ("</s>", 2)])
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    ids = HeliumTokenizer.from_pretrained(tmp_path).encode("the file")
    assert ids[0] == samples.BOS
    assert ids.count(samples.BOS) == 1
    assert ids[-2:] == backend.encode("the file", add_special_tokens=False).ids


@settings(deadline=None)
@given(text=st.lists(st.sampled_from(["<s>", " ", "the", "\n", "</s>"])).map("".join))
def test_a_spelled_bos_is_neither_doubled_nor_lost(from_json: HeliumTokenizer, text: str) -> None:
    ids = from_json.encode(text)
    assert ids[0] == samples.BOS
    assert ids[1:2] != [samples.BOS]
    while text.startswith("<s>"):
        text = text.removeprefix("<s>")
    assert ids[1:] == from_json.encode(text, add_special_tokens=False)


@settings(deadline=None)
@given(text=st.lists(st.sampled_from([" ", "the", "\n", "</s>"])).map("".join))
def test_a_bos_that_a_text_begins_with_is_the_one_that_leads(from_json: HeliumTokenizer, text: str) -> None:
    for spelled in ("<s>", "<s><s>"):
        assert from_json.encode(spelled + text) == from_json.encode(text)


def test_sentencepiece_reads_a_spelled_bos_as_letters(from_model: HeliumTokenizer) -> None:
    assert from_model.decode(from_model.encode("<s>the")) == "<s>the"


# --- ids that the model lacks


def with_post_processor_id(directory: Path, index: int, vocab_size: int = 1000) -> Path:
    rewrite_json(
        directory,
        {"post_processor": json.loads(
            processors.TemplateProcessing(single=["<s>", "$A", "</s>"], special_tokens=[("<s>", 1), ("</s>", index)])
            .__getstate__()
        )},
    )  # fmt: skip
    samples.write_config(directory, vocab_size=vocab_size)
    return directory


def test_an_id_that_a_post_processor_makes_up_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="gives a text the id 1000; the model has 0 to 999") as caught:
        HeliumTokenizer.from_pretrained(with_post_processor_id(tmp_path, 1000))
    assert "\n" not in str(caught.value)
    assert HeliumTokenizer.from_pretrained(with_post_processor_id(tmp_path, 999)).encode("the")[-1] == 999


def test_an_id_that_only_some_texts_get_is_refused_with_them(tmp_path: Path) -> None:
    model = {"type": "BPE", "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3, "x": 4, "y": 1000}, "merges": []}
    rewrite_json(tmp_path, {"model": model, "added_tokens": [], "normalizer": None, "post_processor": None})
    tokenizer = HeliumTokenizer.from_pretrained(tmp_path)
    assert tokenizer.encode("xx") == [1, 4, 4]
    for special in (True, False):
        with pytest.raises(TokenizerError, match="gives a text the id 1000; the model has 0 to 435"):
            tokenizer.encode("xy", add_special_tokens=special)


def test_an_end_of_text_may_have_a_row_and_no_piece(tmp_path: Path) -> None:
    for write in (samples.write_json_checkpoint, samples.write_sentencepiece_checkpoint):
        directory = write(tmp_path / write.__name__)
        samples.write_config(directory, vocab_size=1000, eos_token_id=[2, 999])
        tokenizer = HeliumTokenizer.from_pretrained(directory)
        assert tokenizer.eos_token_ids == (2, 999)
        assert tokenizer.decode([999, THE]) == "the"


def test_stored_padding_and_truncation_are_off(tmp_path: Path) -> None:
    samples.write_json_checkpoint(tmp_path)
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.enable_padding(pad_id=3, pad_token="<pad>", length=16)
    backend.enable_truncation(max_length=4)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = HeliumTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer.encode("the")) == 2
    assert len(tokenizer.encode("the file is of France")) == 6


# --- calling


def test_a_call_on_one_text_is_its_encoding(from_json: HeliumTokenizer) -> None:
    encoding = from_json("the file")
    assert encoding.input_ids == from_json.encode("the file") == encoding["input_ids"]
    assert dict(encoding) == {"input_ids": encoding.input_ids, "attention_mask": [1, 1, 1]}
    with pytest.raises(KeyError):
        encoding["labels"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_masked_and_on_the_side_asked_for(from_json: HeliumTokenizer, side: str) -> None:
    encoding = from_json(["the", "the file"], padding=True, padding_side=side, return_tensors="mlx")  # pyright: ignore[reportArgumentType, reportCallIssue]
    short, long = from_json.encode("the"), from_json.encode("the file")
    ids, mask = encoding.input_ids, encoding.attention_mask
    assert isinstance(ids, mx.array)
    assert isinstance(mask, mx.array)
    assert ids.dtype == mx.int32
    assert ids.tolist() == [[3, *short] if side == "left" else [*short, 3], long]
    assert mask.tolist() == [[0, 1, 1] if side == "left" else [1, 1, 0], [1, 1, 1]]


def test_padding_is_on_the_left_unless_told(from_json: HeliumTokenizer) -> None:
    encoding = from_json(["the", "the file"], padding=True)
    assert encoding.attention_mask == [[0, 1, 1], [1, 1, 1]]


def transformers_like(directory: Path, **values: object) -> tokenizers.Tokenizer:
    """`tokenizers` with padding and truncation on, as transformers' fast tokenizers call it."""
    library = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    library.no_padding()
    library.no_truncation()
    return library


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_to_a_length_is_the_librarys(
    json_directory: Path, from_json: HeliumTokenizer, side: Literal["left", "right"]
) -> None:
    library = transformers_like(json_directory)
    library.enable_padding(direction=side, pad_id=3, pad_token="<pad>", length=5)
    library.enable_truncation(max_length=5)
    texts = ["the", "the file is of France and of Paris"]
    encoding = from_json(texts, padding="max_length", truncation=True, max_length=5, padding_side=side)
    assert encoding.input_ids == [each.ids for each in library.encode_batch(texts)]
    assert encoding.attention_mask == [each.attention_mask for each in library.encode_batch(texts)]
    longer = from_json("the file is of France", padding="max_length", max_length=2)
    assert longer.input_ids == from_json.encode("the file is of France")


@pytest.mark.parametrize("length", [1, 2, 4, 50])
@pytest.mark.parametrize("special", [True, False])
def test_truncation_on_the_left_is_the_librarys(json_directory: Path, length: int, special: bool) -> None:
    tokenizer, library = HeliumTokenizer.from_pretrained(json_directory), transformers_like(json_directory)
    library.enable_truncation(max_length=length, direction="left")
    tokenizer.truncation_side = "left"
    text = "the file is of France"
    encoding = tokenizer(text, truncation=True, max_length=length, add_special_tokens=special)
    assert encoding.input_ids == library.encode(text, add_special_tokens=special).ids


@pytest.mark.parametrize(("word", "same"), [("longest", True), ("do_not_pad", False)])
def test_the_words_of_transformers_pad_as_switches_do(
    from_json: HeliumTokenizer, word: Literal["longest", "do_not_pad"], same: bool
) -> None:
    texts = ["the", "the file"]
    assert dict(from_json(texts, padding=word)) == dict(from_json(texts, padding=same))


def test_attributes_that_are_set_take_effect(json_directory: Path) -> None:
    tokenizer = HeliumTokenizer.from_pretrained(json_directory)
    tokenizer.padding_side = "right"
    tokenizer.pad_token = tokenizer.eos_token
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("</s>", 2)
    short, long = tokenizer.encode("the"), tokenizer.encode("the file")
    assert tokenizer(["the", "the file"], padding=True).input_ids == [[*short, 2], long]
    tokenizer.eos_token = "<|im_end|>"
    assert (tokenizer.eos_token_ids, tokenizer.eos_token_id) == ((5,), 5)
    tokenizer.eos_token_id = 2
    assert tokenizer.eos_token_ids == (2,)
    tokenizer.bos_token = "<pad>"
    assert tokenizer.encode("<pad>the")[0] == 3
    assert tokenizer.encode("<pad>the").count(3) == 1
    tokenizer.pad_token = None
    with pytest.raises(TokenizerError, match="nothing can be padded"):
        tokenizer(["the", "the file"], padding=True)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("padding_side", "top", "padding_side is 'top'; expected 'left' or 'right'"),
        ("truncation_side", None, "truncation_side is None; expected 'left' or 'right'"),
        ("pad_token_id", 100_000, "token id 100000 is out of range"),
        ("pad_token", "nonesuch", "the vocabulary has no piece 'nonesuch'"),
        ("eos_token_ids", ["2"], "'2' is not a token id"),
        ("bos_token_id", None, "None is not a token id"),
        ("clean_up_tokenization_spaces", True, "clean_up_tokenization_spaces cannot be set"),
        ("model_max_length", 5, "model_max_length cannot be set"),
        ("chat_template", "x", "chat_template cannot be set"),
    ],
)
def test_what_would_have_no_effect_cannot_be_set(json_directory: Path, name: str, value: object, message: str) -> None:
    tokenizer = HeliumTokenizer.from_pretrained(json_directory)
    with pytest.raises(TokenizerError, match=message):
        setattr(tokenizer, name, value)


def test_one_text_as_an_array_has_a_batch_of_one(from_json: HeliumTokenizer) -> None:
    ids = from_json("the file", return_tensors="mlx").input_ids
    assert isinstance(ids, mx.array)
    assert ids.shape == (1, 3)


def test_truncation_keeps_the_beginning(from_json: HeliumTokenizer) -> None:
    encoding = from_json(["the file is", "the"], truncation=True, max_length=3)
    assert encoding.input_ids == [from_json.encode("the file"), from_json.encode("the")]
    assert encoding.attention_mask == [[1, 1, 1], [1, 1]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"return_tensors": "mlx"}, "texts of 2, 3 tokens do not make one array; give some text and padding=True"),
        ({"return_tensors": "pt"}, "return_tensors is 'pt'; expected None"),
        ({"padding_side": "top"}, "padding_side is 'top'; expected 'left' or 'right'"),
        ({"max_length": 4}, "truncation is False, padding is False and max_length is 4"),
        ({"truncation": True}, "truncation is True, padding is False and max_length is None"),
        ({"truncation": True, "max_length": 0}, "with a positive max_length"),
        ({"truncation": True, "max_length": 2.5}, "with a positive max_length"),
        ({"truncation": "only_second", "max_length": 4}, "truncation is 'only_second'; expected True, False"),
        ({"padding": "max_length"}, "padding is max_length and max_length is None"),
        ({"padding": "nonsense"}, "padding is 'nonsense'; expected True, False, 'longest', 'do_not_pad', 'max_length'"),
        ({"padding": 1}, "padding is 1; expected True, False"),
    ],
)
def test_a_call_that_cannot_be_met_is_named(
    from_json: HeliumTokenizer, options: dict[str, object], message: str
) -> None:
    with pytest.raises(TokenizerError, match=message):
        from_json(["the", "the file"], **options)  # pyright: ignore[reportArgumentType, reportCallIssue]


@pytest.mark.parametrize("text", [None, 3, b"the", {"text": "the"}])
def test_what_is_not_texts_is_not_called_with(from_json: HeliumTokenizer, text: object) -> None:
    with pytest.raises(TokenizerError, match=r"cannot encode .* expected a string or several"):
        from_json(text)  # pyright: ignore[reportArgumentType, reportCallIssue]


def test_cleaning_up_is_refused(from_json: HeliumTokenizer, tmp_path: Path) -> None:
    assert from_json.decode([THE], clean_up_tokenization_spaces=False) == "the"
    with pytest.raises(TokenizerError, match="clean_up_tokenization_spaces is True"):
        from_json.decode([THE], clean_up_tokenization_spaces=True)
    samples.write_json_checkpoint(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"clean_up_tokenization_spaces": true}')
    with pytest.raises(TokenizerError, match="has clean_up_tokenization_spaces, by which text would change"):
        HeliumTokenizer.from_pretrained(tmp_path)


def test_no_text_makes_no_array(from_json: HeliumTokenizer) -> None:
    assert from_json([]).input_ids == []
    with pytest.raises(TokenizerError, match="texts of no tokens do not make one array"):
        from_json([], return_tensors="mlx")


def test_padding_without_a_pad_id_is_refused(tmp_path: Path) -> None:
    samples.write_json_checkpoint(tmp_path)
    samples.write_config(tmp_path, vocab_size=1000, pad_token_id=None)
    with pytest.raises(TokenizerError, match="no pad_token_id"):
        HeliumTokenizer.from_pretrained(tmp_path)(["the", "a"], padding=True)


# --- the rest of the interface


def test_pieces_and_ids_convert_both_ways(from_json: HeliumTokenizer, from_model: HeliumTokenizer) -> None:
    for tokenizer in (from_json, from_model):
        assert tokenizer.convert_ids_to_tokens([1, THE, len(tokenizer)]) == ["<s>", "▁the", ""]
        assert tokenizer.convert_ids_to_tokens([1, THE], skip_special_tokens=True) == ["▁the"]
        assert tokenizer.convert_ids_to_tokens(THE) == "▁the"
        assert tokenizer.convert_tokens_to_ids("▁the") == THE
        assert tokenizer.convert_tokens_to_ids(["▁the", "<unk>"]) == [THE, 0]
        with pytest.raises(TokenizerError, match="the vocabulary has no piece 'nonesuch'"):
            tokenizer.convert_tokens_to_ids("nonesuch")


def test_arrays_and_single_ids_decode(from_json: HeliumTokenizer, from_model: HeliumTokenizer) -> None:
    for tokenizer in (from_json, from_model):
        assert tokenizer.decode(mx.array([1, THE, THE])) == "the the"
        assert tokenizer.decode(mx.array(THE)) == tokenizer.decode(THE) == "the"
        assert tokenizer.decode(iter([THE])) == "the"
        assert tokenizer.convert_ids_to_tokens(mx.array([THE])) == ["▁the"]
        assert tokenizer.batch_decode([[THE], []]) == tokenizer.batch_decode(mx.array([[THE], [1]])) == ["the", ""]


def test_ids_that_only_the_model_has_decode_to_nothing(from_json: HeliumTokenizer, from_model: HeliumTokenizer) -> None:
    for tokenizer in (from_json, from_model):
        last = len(tokenizer) + samples.SPARE_IDS - 1
        assert tokenizer.decode([last, THE, last]) == "the"
        with pytest.raises(TokenizerError, match=f"token id {last + 1} is out of range; expected 0 to {last}"):
            tokenizer.decode([last + 1])


@pytest.mark.parametrize("ids", [[True], [1.0], ["1"], "the", [[1]], None, [-1], b"x"])
def test_what_is_no_id_is_refused(from_json: HeliumTokenizer, ids: object) -> None:
    with pytest.raises(TokenizerError, match=r"is not a token id; expected an integer|token id -1 is out of range"):
        from_json.decode(ids)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("text", [b"the", None, 3, ["the"]])
def test_what_is_no_text_is_refused(from_json: HeliumTokenizer, from_model: HeliumTokenizer, text: object) -> None:
    for tokenizer in (from_json, from_model):
        with pytest.raises(TokenizerError, match="expected a string"):
            tokenizer.encode(text)  # pyright: ignore[reportArgumentType]


def test_a_lone_surrogate_is_named(from_json: HeliumTokenizer, from_model: HeliumTokenizer) -> None:
    for tokenizer in (from_json, from_model):
        with pytest.raises(TokenizerError, match=r"lone surrogate '\\ud83d' at position 4"):
            tokenizer.encode("the \ud83d")


def test_a_prompt_that_ends_in_a_space_is_warned_about(from_json: HeliumTokenizer, from_model: HeliumTokenizer) -> None:
    for tokenizer in (from_json, from_model):
        assert tokenizer.convert_ids_to_tokens(tokenizer.encode(" Paris")) == ["<s>", "▁", "▁Paris"]
        warning = tokenizer.trailing_space_warning("The capital of France is ")
        assert warning is not None
        assert "'▁'" in warning
        assert "\n" not in warning
        for prompt in ("The capital of France is", " Paris", "", "the\n", "the\u00a0", "the▁"):
            assert tokenizer.trailing_space_warning(prompt) is None


def test_a_trailing_space_that_sentencepiece_removes_is_no_matter(tmp_path: Path) -> None:
    directory = samples.write_sentencepiece_checkpoint(tmp_path, remove_extra_whitespaces=True)
    assert HeliumTokenizer.from_pretrained(directory).trailing_space_warning("the ") is None


def test_a_chat_template_is_refused_with_a_reason(from_json: HeliumTokenizer) -> None:
    with pytest.raises(TokenizerError, match="a base model without a chat template"):
        from_json.apply_chat_template([{"role": "user", "content": "the"}], tokenize=False)


def test_half_of_a_character_is_no_token_and_named(from_json: HeliumTokenizer, from_model: HeliumTokenizer) -> None:
    for tokenizer in (from_json, from_model):
        for ask in (tokenizer.one_token, tokenizer.convert_tokens_to_ids, tokenizer.encode):
            with pytest.raises(TokenizerError, match=r"lone surrogate '\\udcff' at position 1"):
                ask("a\udcff")


def test_a_long_piece_that_there_is_not_is_not_quoted_whole(from_json: HeliumTokenizer) -> None:
    for ask in (from_json.one_token, from_json.convert_tokens_to_ids):
        with pytest.raises(TokenizerError) as caught:
            ask("the" * 5000)
        assert len(str(caught.value)) < 300


def test_saving_copies_the_files_byte_for_byte(json_directory: Path, model_directory: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "new" / "target"
    source.mkdir()
    contents = {
        "tokenizer.json": (json_directory / "tokenizer.json").read_bytes() + b"\n \n",
        "tokenizer.model": (model_directory / "tokenizer.model").read_bytes(),
        "tokenizer_config.json": b'{"clean_up_tokenization_spaces":   false}',
        "special_tokens_map.json": b"{}",
    }
    for name, content in contents.items():
        (source / name).write_bytes(content)
    samples.write_config(source, vocab_size=1000)
    tokenizer = HeliumTokenizer.from_pretrained(source)
    target.mkdir(parents=True)
    (target / "tokenizer.json").write_text("of another checkpoint")
    saved = tokenizer.save_pretrained(target)
    assert {Path(path).name: Path(path).read_bytes() for path in saved} == contents
    assert {path.name for path in target.iterdir()} == set(contents)
    assert len(tokenizer.save_pretrained(source)) == len(tokenizer.save_pretrained(tmp_path / "new" / "other")) == 4
    assert (source / "tokenizer.json").read_bytes() == contents["tokenizer.json"]


def test_saving_where_a_file_is_in_the_way_is_an_error(from_json: HeliumTokenizer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TokenizerError, match=r"the tokenizer cannot be saved in .*file"):
        from_json.save_pretrained(tmp_path / "file")


# --- files that are missing or malformed


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="nowhere: no such directory"):
        HeliumTokenizer.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(TokenizerError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        HeliumTokenizer.from_pretrained(tmp_path)
    samples.write_json_checkpoint(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(TokenizerError, match=r"config\.json cannot be read \(No such file"):
        HeliumTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.99])
def test_a_cut_file_is_named(
    json_directory: Path, model_directory: Path, tmp_path: Path, name: str, kept: float
) -> None:
    whole = ((json_directory if name == "tokenizer.json" else model_directory) / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(len(whole) * kept)])
    samples.write_config(tmp_path, vocab_size=1000)
    with pytest.raises(TokenizerError, match=f"{name} is not a ") as caught:
        HeliumTokenizer.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "config.json", "generation_config.json"])
def test_a_file_that_cannot_be_read_is_named(
    json_directory: Path, model_directory: Path, tmp_path: Path, name: str
) -> None:
    for source in (*json_directory.iterdir(), *model_directory.iterdir()):
        if name != "tokenizer.model" or source.name != "tokenizer.json":
            (tmp_path / source.name).write_bytes(source.read_bytes())
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).mkdir()
    with pytest.raises(TokenizerError, match=f"{name} cannot be read \\(Is a directory\\)"):
        HeliumTokenizer.from_pretrained(tmp_path)


def test_a_post_processor_that_panics_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    broken = {"type": "TemplateProcessing", "pair": [], "special_tokens": {}}
    broken["single"] = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    rewrite_json(tmp_path, {"post_processor": broken})
    with pytest.raises(TokenizerError, match=r"tokenizer\.json (has a post-processor that fails|is not a tokenizer)"):
        HeliumTokenizer.from_pretrained(tmp_path)
    capfd.readouterr()  # Rust's own report of the panic


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bos_token_id": None}, r"config\.json has bos_token_id None; expected one id"),
        ({"bos_token_id": [1, 2]}, r"config\.json has bos_token_id \[1, 2\]; expected one id"),
        ({"eos_token_id": None}, r"config\.json has no eos_token_id, so generation could not stop"),
        ({"eos_token_id": []}, r"config\.json has no eos_token_id"),
        ({"eos_token_id": "2"}, r"config\.json has eos_token_id '2'; expected an integer or a list"),
        ({"eos_token_id": [True]}, r"config\.json has eos_token_id \[True\]; expected an integer or a list"),
        ({"eos_token_id": [2, 1000]}, "have eos_token_id 1000; expected 0 to 999"),
        ({"bos_token_id": -1}, "have bos_token_id -1; expected 0 to"),
        ({"pad_token_id": 1000}, "have pad_token_id 1000; expected 0 to 999"),
        ({"vocab_size": 400}, r"has \d+ pieces, but config\.json has vocab_size 400"),
        ({"vocab_size": "many"}, r"vocab_size 'many'; expected a positive integer"),
        ({"vocab_size": 0}, r"vocab_size 0; expected a positive integer"),
    ],
)
@pytest.mark.parametrize("write", [samples.write_json_checkpoint, samples.write_sentencepiece_checkpoint])
def test_ids_that_do_not_fit_are_named(
    tmp_path: Path, write: Callable[[Path], Path], fields: dict[str, object], message: str
) -> None:
    write(tmp_path)
    samples.write_config(tmp_path, **{"vocab_size": 1000, **fields})  # pyright: ignore[reportArgumentType]
    with pytest.raises(TokenizerError, match=message) as caught:
        HeliumTokenizer.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON"), ("[]", "holds a list"), ("\xff", "is not JSON")])
def test_a_malformed_config_is_named(tmp_path: Path, text: str, message: str) -> None:
    samples.write_json_checkpoint(tmp_path)
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(TokenizerError, match=f"config.json {message}"):
        HeliumTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"], ids=["cut", "list", "not UTF-8"])
def test_beside_an_unreadable_generation_config_the_config_says_when_text_ends(tmp_path: Path, content: bytes) -> None:
    samples.write_json_checkpoint(tmp_path)
    (tmp_path / "generation_config.json").write_bytes(content)
    eos = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["eos_token_id"]
    assert HeliumTokenizer.from_pretrained(tmp_path).eos_token_ids == (eos,)


def test_chat_templates_are_saved_with_the_tokenizer(tmp_path: Path) -> None:
    source = samples.write_json_checkpoint(tmp_path / "source")
    (source / "additional_chat_templates").mkdir()
    written = {"chat_template.jinja": "{{ a }}", "additional_chat_templates/rag.jinja": "{{ b }}"}
    for name, text in written.items():
        (source / name).write_text(text)
    HeliumTokenizer.from_pretrained(source).save_pretrained(tmp_path / "saved")
    assert {name: (tmp_path / "saved" / name).read_text() for name in written} == written


def test_a_tokenizer_may_lie_in_a_subfolder(tmp_path: Path) -> None:
    inner = samples.write_json_checkpoint(tmp_path / "variants" / "one")
    found = HeliumTokenizer.from_pretrained(tmp_path, subfolder="variants/one")
    assert found.encode("the file") == HeliumTokenizer.from_pretrained(inner).encode("the file")


def test_nothing_decodes_to_nothing_whatever_the_decoder_strips(tmp_path: Path) -> None:
    decoder = {
        "type": "Sequence",
        "decoders": [{"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 3, "stop": 0}],
    }
    tokenizer = HeliumTokenizer.from_pretrained(rewrite_json(tmp_path, {"decoder": decoder}))
    assert tokenizer.decode([]) == tokenizer.decode([tokenizer.bos_token_id]) == ""
    assert "file" in tokenizer.decode(tokenizer.encode("the file"))


def test_a_token_is_named_by_id_piece_or_text(from_json: HeliumTokenizer, from_model: HeliumTokenizer) -> None:
    for tokenizer in (from_json, from_model):
        piece = tokenizer.convert_ids_to_tokens(tokenizer.encode("the")[1])
        index = tokenizer.convert_tokens_to_ids(piece)
        assert tokenizer.one_token(index) == tokenizer.one_token(piece) == index
        assert tokenizer.one_token("</s>") == tokenizer.eos_token_id
        with pytest.raises(TokenizerError, match=r"'the the' is \d+ tokens \(.*\); expected a text that is one"):
            tokenizer.one_token("the the")
        with pytest.raises(TokenizerError, match="expected a text that is one"):
            tokenizer.one_token("")
        with pytest.raises(TokenizerError):
            tokenizer.one_token(10**6)


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        decoders.Sequence([decoders.Fuse(), decoders.ByteFallback()]),
    ],
    ids=["none", "order"],
)
def test_a_decoder_that_is_not_heliums_is_not_streamed(tmp_path: Path, decoder: decoders.Decoder | None) -> None:
    state = None if decoder is None else json.loads(decoder.__getstate__())
    tokenizer = HeliumTokenizer.from_pretrained(rewrite_json(tmp_path, {"decoder": state}))
    assert "file" in tokenizer.decode(tokenizer.encode("the file"))
    with pytest.raises(TokenizerError, match="which cannot be streamed; expected Replace, ByteFallback"):
        tokenizer.detokenizer()


@pytest.mark.parametrize("strip", [0, 2])
def test_a_decoder_that_strips_otherwise_is_streamed_so(tmp_path: Path, strip: int) -> None:
    decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Replace("t", "T"), decoders.ByteFallback(), decoders.Fuse()]
        + ([decoders.Strip(" ", strip, 0)] if strip else [])
    )
    tokenizer = HeliumTokenizer.from_pretrained(rewrite_json(tmp_path, {"decoder": json.loads(decoder.__getstate__())}))
    ids = tokenizer.encode("   the file")
    detokenizer = tokenizer.detokenizer()
    assert "".join([*map(detokenizer.add_token, ids), detokenizer.finish()]) == tokenizer.decode(ids)
    assert tokenizer.decode(ids) == " " * (4 - strip) + "The file"


@pytest.mark.parametrize(
    ("name", "write"),
    [("tokenizers", samples.write_json_checkpoint), ("sentencepiece", samples.write_sentencepiece_checkpoint)],
)
def test_only_the_library_that_is_needed_is_imported(tmp_path: Path, name: str, write: Callable[[Path], Path]) -> None:
    code = """if True:
        import sys
        from helium_mlx.tokenizer.tokenizer import HeliumTokenizer
        heavy = {"tokenizers", "sentencepiece", "transformers", "torch", "mlx", "mlx.core", "numpy"}
        assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
        tokenizer = HeliumTokenizer.from_pretrained(sys.argv[1])
        tokenizer.detokenizer().add_token(tokenizer.encode("the")[1])
        print(*sorted(heavy & sys.modules.keys()))
    """
    ended = run_code(code, write(tmp_path), cwd=samples.DEMO.parents[1])
    assert (ended.stdout.split(), ended.stderr) == ([name], "")


def test_a_pad_id_of_minus_one_is_none(tmp_path: Path) -> None:
    samples.write_json_checkpoint(tmp_path)
    samples.write_config(tmp_path, vocab_size=1000, pad_token_id=-1)  # pyright: ignore[reportArgumentType]
    assert HeliumTokenizer.from_pretrained(tmp_path).pad_token_id is None


def tokenizer_with(directory: Path, **parts: object) -> Path:
    samples.write_json_checkpoint(directory)
    values = json.loads((directory / "tokenizer.json").read_text())
    (directory / "tokenizer.json").write_text(json.dumps(values | parts))
    return directory


def charsmap(units: list[int], strings: bytes) -> dict[str, object]:
    table = struct.pack(f"<I{len(units)}I", 4 * len(units), *units) + strings
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(table).decode()}


def letter_a_becomes(text: str) -> dict[str, object]:
    """A charsmap by which "a" becomes a text: units of `label | has_leaf << 8 | offset << 10`, and a leaf."""
    units = [0] * 512
    units[0] = 256 << 10
    units[256 ^ ord("a")] = ord("a") | 1 << 8 | ord("a") << 10
    units[256] = 1 << 31
    return charsmap(units, text.encode() + b"\0")


def sentencepiece_with_charsmap(text: str) -> bytes:
    table = base64.b64decode(cast(str, letter_a_becomes(text)["precompiled_charsmap"]))
    return sentencepiece_model._bytes(3, sentencepiece_model._bytes(2, table))


DOUBLING = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
BOMBS: dict[str, dict[str, object]] = {
    "a normalizer that doubles": {"normalizer": {"type": "Sequence", "normalizers": [DOUBLING] * 24}},
    "a replacement of nothing": {"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "x" * 10_000}},
    "a long replacement by pattern": {
        "normalizer": {"type": "Replace", "pattern": {"Regex": "."}, "content": "x" * 10_000}
    },
    "a long prefix": {"normalizer": {"type": "Prepend", "prepend": "x" * 10_000}},
    "prefixes of prefixes": {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "xxx"},
                {"type": "Replace", "pattern": {"String": "x"}, "content": "xxxxxxxxxxx"},
                {"type": "Replace", "pattern": {"String": "x"}, "content": "xxxxxxxxxxx"},
            ],
        }
    },
    "a charsmap": {"normalizer": letter_a_becomes("b" * 10_000)},
    "ligatures of ligatures": {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Replace", "pattern": {"String": " "}, "content": "\ufdfa"},
                {"type": "NFKD"},
            ]
            * 8,
        }
    },
    "bytes of bytes": {"normalizer": {"type": "Sequence", "normalizers": [{"type": "ByteLevel"}] * 24}},
    "bytes of bytes in words": {
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
            ]
            * 24,
        }
    },
    "spaces around spaces": {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {
                    "type": "BertNormalizer",
                    "clean_text": False,
                    "handle_chinese_chars": True,
                    "strip_accents": None,
                    "lowercase": False,
                },
                {"type": "Replace", "pattern": {"String": " "}, "content": "中"},
            ]
            * 12,
        }
    },
    "a template of many texts": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 900,
            "pair": [],
            "special_tokens": {},
        }
    },
    "a decoder that grows": {"decoder": {"type": "Sequence", "decoders": [DOUBLING] * 24}},
    "a template of many ids": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1] * 2000, "tokens": ["<s>"] * 2000}},
        }
    },
    "a template of many tokens": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}] * 2000,
            "pair": [],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        }
    },
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_tokenizer_that_makes_much_of_little_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(TokenizerError, match="which no Helium's has") as caught:
        HeliumTokenizer.from_pretrained(tokenizer_with(tmp_path, **BOMBS[name]))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_fails_at_a_text_is_one_line(tmp_path: Path) -> None:
    model = {"type": "WordLevel", "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3}, "unk_token": "nope"}
    directory = tokenizer_with(tmp_path, model=model, added_tokens=[], normalizer=None, pre_tokenizer=None)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json (cannot encode a text|is not|has)") as caught:
        HeliumTokenizer.from_pretrained(directory).encode("what it does not know")
    assert "\n" not in str(caught.value)


def test_a_sentencepiece_model_that_makes_much_of_little_is_refused(tmp_path: Path) -> None:
    samples.write_config(tmp_path, vocab_size=1000)
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_with_charsmap("b" * 10_000))
    with pytest.raises(TokenizerError, match=r"tokenizer\.model has rules .* which no Helium's has"):
        HeliumTokenizer.from_pretrained(tmp_path)


def unicode_charsmap(directory: Path) -> bytes:
    """SentencePiece's own table for NFKC."""
    (directory / "text").write_text("\n".join(f"the quick brown fox {number} jumps" for number in range(300)))
    sentencepiece.SentencePieceTrainer.Train(
        input=str(directory / "text"), model_prefix=str(directory / "trained"), vocab_size=45,
        normalization_rule_name="nmt_nfkc", minloglevel=2,
    )  # fmt: skip
    specs = [value for field, value in bounds._fields((directory / "trained.model").read_bytes()) if field == 3]
    return next(value for field, value in bounds._fields(specs[0]) if field == 2)


USUAL: dict[str, list[dict[str, object]]] = {
    "of ALBERT": [
        {"type": "Replace", "pattern": {"String": "``"}, "content": '"'}, {"type": "NFKD"}, {"type": "StripAccents"},
        {"type": "Lowercase"}, {"type": "Precompiled"},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
    ],
    "of Llama": [
        {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ],
    "a small charsmap": [letter_a_becomes("bb")],
}  # fmt: skip


@pytest.mark.parametrize("name", USUAL)
def test_normalizers_that_are_usual_are_taken(tmp_path: Path, name: str) -> None:
    steps = [dict(step) for step in USUAL[name]]
    for step in steps:
        if step == {"type": "Precompiled"}:
            step["precompiled_charsmap"] = base64.b64encode(unicode_charsmap(tmp_path)).decode()
    directory = tokenizer_with(tmp_path, normalizer={"type": "Sequence", "normalizers": steps})
    library = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    text = "a ﷺ Ａé"
    ids = HeliumTokenizer.from_pretrained(directory).encode(text, add_special_tokens=False)
    assert ids == library.encode(text, add_special_tokens=False).ids


PANICS: dict[str, object] = {
    "empty": "",
    "null": None,
    "a number": 7,
    "a list": ["AAAA"],
    "not base64": "!!",
    "escaped": "AA\n=",
    "an empty table": base64.b64encode(bytes(4)).decode(),
    "a cut table": base64.b64encode(struct.pack("<I", 400) + b"x").decode(),
    "one unit": charsmap([0], b"")["precompiled_charsmap"],
    "a unit that leads out": charsmap([0x3FFFFF << 10, *[0] * 255], b"")["precompiled_charsmap"],
    "a leaf beyond the strings": charsmap([256 << 10 | 1 << 8, *[0] * 255, 500, *[0] * 255], b"x")[
        "precompiled_charsmap"
    ],
    "a leaf inside a character": charsmap([256 << 10 | 1 << 8, *[0] * 255, 1, *[0] * 255], "é".encode())[
        "precompiled_charsmap"
    ],
    "strings that are not UTF-8": charsmap([0] * 256, b"\xff")["precompiled_charsmap"],
}


@pytest.mark.parametrize("name", PANICS)
def test_a_charsmap_that_rust_would_panic_over_is_refused_quietly(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    normalizer = {"type": "Precompiled", "precompiled_charsmap": PANICS[name]}
    with pytest.raises(TokenizerError, match=r"tokenizer\.json has a precompiled_charsmap that ") as caught:
        HeliumTokenizer.from_pretrained(tokenizer_with(tmp_path, normalizer=normalizer))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


SUBSTITUTE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
EMPTY_RULES: dict[str, dict[str, object]] = {
    "a prefix": {"type": "Prepend", "prepend": ""},
    "a text": {"type": "Replace", "pattern": {"String": ""}, "content": "x"},
}


@pytest.mark.parametrize("name", EMPTY_RULES)
def test_a_rule_about_nothing_that_rust_would_panic_over_is_refused_quietly(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    steps = [{"type": "Strip", "strip_left": True, "strip_right": True}, EMPTY_RULES[name], {"type": "NFC"}, SUBSTITUTE]
    directory = tokenizer_with(tmp_path, normalizer={"type": "Sequence", "normalizers": steps})
    with pytest.raises(TokenizerError, match=r"has a normalizer (Prepend|Replace) of nothing, which no Helium's"):
        HeliumTokenizer.from_pretrained(directory)
    assert capfd.readouterr() == ("", "")


def splitting(pattern: str) -> dict[str, object]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


LONG_SEARCHES = [
    "(a+)+$", "(?:a|aa)*$", "(a*)*b", "((a?))+$", "([ab]+c?)+d", "(a{1,})+$", "(?=(a+)+$)", "(?i:x|(a+)+)$",
    "((a|b))*c", r"(\(a+)+$", "(a+){2,}b", "(a+)+?$", r"(\p{L}+)+$", "([^)]+)+$", "(.*)*x",
]  # fmt: skip
RULES_OF_PANICS: dict[str, tuple[dict[str, object], str]] = {
    **{p: ({"pre_tokenizer": splitting(p)}, "a pre_tokenizer Split by a pattern that repeats") for p in LONG_SEARCHES},
    "in a normalizer": (
        {"normalizer": {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "b"}},
        "a normalizer Replace by a pattern that repeats",
    ),
    "pieces of no length": ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "FixedLength of length 0"),
    "the end of a piece": (
        {"decoder": {"type": "Sequence", "decoders": [{"type": "Strip", "content": "▁", "start": 1, "stop": 1}]}},
        "a decoder Strip that strips from the right",
    ),
}


@pytest.mark.parametrize("name", RULES_OF_PANICS)
def test_a_rule_that_rust_would_panic_over_is_refused_quietly(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    parts, said = RULES_OF_PANICS[name]
    with pytest.raises(TokenizerError, match=f"has .*{said}.*, which no Helium's has"):
        HeliumTokenizer.from_pretrained(tokenizer_with(tmp_path, **parts))
    assert capfd.readouterr() == ("", "")


PUBLISHED_PATTERNS = {
    "GPT-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "Llama 3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}]+[\r\n]*|\s*[\r\n]+|\s+",
    "groups of digits": r"\d{1,3}(?=(?:\d{3})*\b)",
    "BLOOM": r" ?[^(\s|[.,!?…])]+",
    "DeepSeek": r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|\s+(?!\S)""",
    "o200k": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}]*[\p{Ll}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?| ?[^\s]+[\r\n/]*",
}


@pytest.mark.parametrize("name", PUBLISHED_PATTERNS)
def test_the_patterns_of_published_tokenizers_are_taken(tmp_path: Path, name: str) -> None:
    directory = tokenizer_with(tmp_path, pre_tokenizer=splitting(PUBLISHED_PATTERNS[name]))
    assert HeliumTokenizer.from_pretrained(directory).encode("Once upon a time, 12345 (a)")


def test_a_normalizer_that_panics_over_a_declared_token_is_one_line(tmp_path: Path) -> None:
    """What a pattern matches is not known beforehand, so that Rust's own words are on standard error then."""
    steps = [{"type": "Replace", "pattern": {"Regex": "^|$"}, "content": "é"}, {"type": "NFKC"}, {"type": "NFC"}]
    directory = tokenizer_with(tmp_path, normalizer={"type": "Sequence", "normalizers": steps})
    declared = {"7": {"content": "of", "normalized": True}}
    (directory / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": declared}))
    with pytest.raises(TokenizerError, match=r"tokenizer\.json has a normalizer that fails: index out of bounds"):
        HeliumTokenizer.from_pretrained(directory)


def test_a_charsmap_that_is_taken_never_panics(tmp_path: Path) -> None:
    table, rng, taken = unicode_charsmap(tmp_path), random.Random(0), 0
    for _ in range(25):
        broken = bytearray(table)
        for _ in range(rng.choice([1, 3])):
            broken[rng.randrange(4, len(broken))] = rng.randrange(256)
        normalizer = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(broken).decode()}
        try:
            tokenizer = HeliumTokenizer.from_pretrained(tokenizer_with(tmp_path, normalizer=normalizer))
        except TokenizerError as error:
            assert "charsmap" in str(error) or "times as long" in str(error)
            continue
        taken += 1
        tokenizer.encode("".join(map(chr, range(32, 2000))) + "ﷺ中Ａ")
    assert taken


def test_numbers_and_switches_of_numpy_are_taken(from_json: HeliumTokenizer) -> None:
    numpy = pytest.importorskip("numpy")
    length = numpy.int64(8)
    assert from_json("the file", padding="max_length", max_length=length) == from_json(
        "the file", padding="max_length", max_length=8
    )
    assert from_json("the file", padding=numpy.True_) == from_json("the file", padding=True)
