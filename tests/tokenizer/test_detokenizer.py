import codecs
import json
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Literal, cast

import pytest
import tokenizer_samples as samples
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers

from helium_mlx.errors import TokenizerError
from helium_mlx.tokenizer.detokenizer import ByteFallbackDetokenizer, Piece, SentencePieceDetokenizer
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

REPLACEMENT = "\ufffd"

# Every kind of piece: one more separator than the one stripped, a user-defined and an unused piece.
ROWS = samples.vocabulary(extra=(("▁▁▁x", samples.NORMAL), ("user", samples.USER_DEFINED), ("unused", samples.UNUSED)))
CHARACTERS = ("é", "😀", "\u200d", "中", "\ufffd", "\x00", " ", "\n", "a")
N_IDS = len(ROWS) + samples.SPARE_IDS


def byte_ids(text: str) -> list[int]:
    return [samples.FIRST_BYTE + byte for byte in text.encode()]


def id_lists(n_ids: int = N_IDS) -> st.SearchStrategy[list[int]]:
    """Ids heavy on what goes wrong: bytes, whole and broken, newlines, separators, special and unknown ids."""
    one = st.one_of(
        st.integers(samples.FIRST_BYTE, samples.FIRST_PIECE - 1),
        st.sampled_from([0, samples.BOS, samples.EOS, samples.PAD, samples.IM_START, samples.FIRST_RESERVED]),
        st.just(samples.NEWLINE),
        st.integers(samples.FIRST_PIECE, samples.FIRST_PIECE + 2),
        st.integers(0, n_ids - 1),
    )
    character = st.sampled_from(CHARACTERS).map(byte_ids)
    return st.lists(st.one_of(character, one.map(lambda index: [index])), max_size=14).map(
        lambda groups: [index for group in groups for index in group]
    )


@pytest.fixture(scope="session")
def tokenizers_by_name(tmp_path_factory: pytest.TempPathFactory) -> dict[str, HeliumTokenizer]:
    root = tmp_path_factory.mktemp("detokenizer")
    directories = {"json": samples.write_json_checkpoint(root / "json", ROWS)}
    for prefix in (False, True):
        for collapse in (False, True):
            name = f"model-prefix{prefix:d}-collapse{collapse:d}"
            directories[name] = samples.write_sentencepiece_checkpoint(
                root / name, ROWS, add_dummy_prefix=prefix, remove_extra_whitespaces=collapse
            )
    directories["model-unknown"] = samples.write_sentencepiece_checkpoint(root / "unknown", ROWS, unknown_surface="")
    # Without a piece for the separator alone, the first piece that begins with one tells what becomes of it.
    for name, prefix in (("model-noseparator-prefix0", False), ("model-noseparator-prefix1", True)):
        rows = [(piece if piece != "▁" else "other", score, kind) for piece, score, kind in ROWS]
        directories[name] = samples.write_sentencepiece_checkpoint(root / name, rows, add_dummy_prefix=prefix)
    return {name: HeliumTokenizer.from_pretrained(directory) for name, directory in directories.items()}


NAMES = (
    "json",
    "model-prefix0-collapse0",
    "model-prefix0-collapse1",
    "model-prefix1-collapse0",
    "model-prefix1-collapse1",
    "model-unknown",
    "model-noseparator-prefix0",
    "model-noseparator-prefix1",
)


def stream(tokenizer: HeliumTokenizer, ids: list[int], *, skip_special_tokens: bool = True) -> list[str]:
    detokenizer = tokenizer.detokenizer(skip_special_tokens=skip_special_tokens)
    return [*(detokenizer.add_token(index) for index in ids), detokenizer.finish()]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=300, deadline=None)
@given(ids=id_lists(), skip=st.booleans())
def test_the_stream_joined_is_what_decode_gives(
    tokenizers_by_name: dict[str, HeliumTokenizer], name: str, ids: list[int], skip: bool
) -> None:
    tokenizer = tokenizers_by_name[name]
    pieces = stream(tokenizer, ids, skip_special_tokens=skip)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("kept", ["tokenizer.json", "tokenizer.model"])
def test_the_demos_stream_joined_is_what_decode_gives(tmp_path: Path, kept: str) -> None:
    for name in (kept, "config.json"):
        (tmp_path / name).write_bytes((samples.DEMO / name).read_bytes())
    tokenizer = HeliumTokenizer.from_pretrained(tmp_path)

    @settings(max_examples=300, deadline=None)
    @given(ids=id_lists(len(tokenizer)), skip=st.booleans())
    def check(ids: list[int], skip: bool) -> None:
        pieces = stream(tokenizer, ids, skip_special_tokens=skip)
        assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=skip)

    check()


@pytest.mark.parametrize("name", ["json", "model-prefix1-collapse0"])
@settings(deadline=None)
# `tokenizers` takes the name of a byte's token in a text for that token.
@given(text=st.text().filter(lambda text: "<0x" not in text))
def test_the_stream_of_an_encoded_text_holds_no_half_character(
    tokenizers_by_name: dict[str, HeliumTokenizer], name: str, text: str
) -> None:
    tokenizer = tokenizers_by_name[name]
    ids = tokenizer.encode(text)
    pieces = stream(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert "".join(pieces).count(REPLACEMENT) == text.count(REPLACEMENT)


def test_a_word_appears_with_its_token(tokenizers_by_name: dict[str, HeliumTokenizer]) -> None:
    for tokenizer in tokenizers_by_name.values():
        ids = tokenizer.encode("the capital of France", add_special_tokens=False)
        assert [piece.strip() for piece in stream(tokenizer, ids)] == ["the", "capital", "of", "France", ""]


BYTE_NAMES = ("json", "model-prefix1-collapse0")


@pytest.mark.parametrize("name", BYTE_NAMES)
def test_a_character_appears_with_its_last_byte(tokenizers_by_name: dict[str, HeliumTokenizer], name: str) -> None:
    tokenizer = tokenizers_by_name[name]
    ids = [*byte_ids("é👍🏽"), tokenizer.convert_tokens_to_ids("the")]
    assert stream(tokenizer, ids) == ["", "é", "", "", "", "👍", "", "", "", "🏽", "the", ""]


@pytest.mark.parametrize("name", BYTE_NAMES)
@settings(max_examples=300, deadline=None)
@given(data=st.lists(st.one_of(st.sampled_from(CHARACTERS).map(str.encode), st.binary(max_size=3))).map(b"".join))
def test_bytes_are_decoded_as_python_decodes_them_with_replacements(
    tokenizers_by_name: dict[str, HeliumTokenizer], name: str, data: bytes
) -> None:
    tokenizer = tokenizers_by_name[name]
    ids = [tokenizer.convert_tokens_to_ids("the"), *(samples.FIRST_BYTE + byte for byte in data)]
    expected = "the" + data.decode("utf-8", errors="replace")
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids) == expected


@pytest.mark.parametrize("name", BYTE_NAMES)
def test_a_text_that_is_cut_inside_a_character_loses_that_one_alone(
    tokenizers_by_name: dict[str, HeliumTokenizer], name: str
) -> None:
    tokenizer = tokenizers_by_name[name]
    ids = byte_ids("你" * 11)[:31]
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids) == "你" * 10 + REPLACEMENT
    ids.append(tokenizer.convert_tokens_to_ids("the"))
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids) == "你" * 10 + REPLACEMENT + "the"


def test_tokenizer_json_does_not_see_a_skipped_token_within_a_run(
    tokenizers_by_name: dict[str, HeliumTokenizer],
) -> None:
    ids = byte_ids("é")
    ids.insert(1, samples.EOS)
    assert stream(tokenizers_by_name["json"], ids) == ["", "", "é", ""]
    shown = stream(tokenizers_by_name["json"], ids, skip_special_tokens=False)
    assert shown == ["", f"{REPLACEMENT}</s>", REPLACEMENT, ""]


def test_invalid_bytes_are_replaced_alone(tokenizers_by_name: dict[str, HeliumTokenizer]) -> None:
    ids = [*byte_ids("😀"), samples.FIRST_BYTE + 0xFF, *byte_ids("é")[:1]]
    for name in BYTE_NAMES:
        assert stream(tokenizers_by_name[name], ids) == ["", "", "", "😀", REPLACEMENT, "", REPLACEMENT]


def test_a_control_symbol_ends_a_run_for_sentencepiece(tokenizers_by_name: dict[str, HeliumTokenizer]) -> None:
    ids = byte_ids("é")
    ids.insert(1, samples.EOS)
    assert stream(tokenizers_by_name["model-prefix1-collapse0"], ids) == ["", REPLACEMENT, REPLACEMENT, ""]


def test_only_the_very_first_space_is_dropped(tokenizers_by_name: dict[str, HeliumTokenizer]) -> None:
    for name in ("json", "model-prefix1-collapse0"):
        tokenizer = tokenizers_by_name[name]
        ids = [samples.BOS, *tokenizer.convert_tokens_to_ids(["▁", "▁the", "▁the"])]
        assert stream(tokenizer, ids) == ["", "", " the", " the", ""]


def test_finish_starts_a_new_text(tokenizers_by_name: dict[str, HeliumTokenizer]) -> None:
    for tokenizer in tokenizers_by_name.values():
        ids = [*tokenizer.encode("the 中 file 国"), samples.FIRST_BYTE + 0xE4]
        detokenizer = tokenizer.detokenizer()
        texts = ["".join([*map(detokenizer.add_token, ids), detokenizer.finish()]) for _ in range(2)]
        assert texts == [tokenizer.decode(ids)] * 2
        assert detokenizer.finish() == ""


def test_an_id_out_of_range_is_refused(tokenizers_by_name: dict[str, HeliumTokenizer]) -> None:
    for tokenizer in tokenizers_by_name.values():
        detokenizer = tokenizer.detokenizer()
        for index in (-1, N_IDS):
            with pytest.raises(TokenizerError, match=f"token id {index} is out of range; expected 0 to {N_IDS - 1}"):
                detokenizer.add_token(index)
        assert detokenizer.add_token(N_IDS - 1) == ""


def work(detokenizer: ByteFallbackDetokenizer | SentencePieceDetokenizer, ids: list[int]) -> int:
    """How many lines of Python streaming these ids executes."""
    count = 0

    def trace(frame: FrameType, event: str, _argument: object) -> object:
        nonlocal count
        if not frame.f_code.co_filename.endswith("detokenizer.py"):
            return None
        if event == "line":
            count += 1
        return trace

    previous = sys.gettrace()
    sys.settrace(cast("None", trace))
    try:
        for index in ids:
            detokenizer.add_token(index)
        detokenizer.finish()
    finally:
        sys.settrace(previous)
    return count


def letters(index: int) -> Piece:
    return index if index < 256 else "▁" if index == 256 else "▁word"


@pytest.mark.parametrize(
    "unit",
    [[257], [256], list("😀".encode()), [0xFF], [0xF0, 0x9F], [257, *"é".encode()], [0xE0]],
    ids=["words", "separators", "one long run", "invalid", "truncated", "short runs", "pending"],
)
def test_twice_the_tokens_are_twice_the_work(unit: list[int]) -> None:
    def once(n: int) -> tuple[int, int]:
        fallback = ByteFallbackDetokenizer(letters, skipped=frozenset())
        return work(fallback, unit * n), work(SentencePieceDetokenizer(letters, dummy_prefix="every"), unit * n)

    for few, many in zip(once(200), once(400), strict=True):
        assert many < 2.05 * few


def test_each_byte_of_a_run_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fed = 0
    make = codecs.getincrementaldecoder("utf-8")

    class CountingDecoder:
        def __init__(self, errors: str) -> None:
            self._decoder = make(errors)

        def decode(self, data: bytes, final: bool = False) -> str:
            nonlocal fed
            fed += len(data)
            return self._decoder.decode(data, final)

    monkeypatch.setattr(codecs, "getincrementaldecoder", lambda _encoding: CountingDecoder)
    detokenizer = ByteFallbackDetokenizer(letters, skipped=frozenset())
    run = "😀é".encode() * 300
    assert "".join(detokenizer.add_token(byte) for byte in run) == "😀é" * 300
    assert detokenizer.finish() == ""
    assert fed == len(run)


@settings(deadline=None)
@given(run=st.binary(max_size=40))
def test_three_bytes_at_most_are_held(run: bytes) -> None:
    for make in (
        lambda: ByteFallbackDetokenizer(letters, skipped=frozenset()),
        lambda: SentencePieceDetokenizer(letters, dummy_prefix="first"),
    ):
        detokenizer = make()
        shown = "".join(map(detokenizer.add_token, run))
        text = run.decode("utf-8", errors="replace")
        # SentencePiece leaves out a space that comes first.
        assert text.startswith(shown) or text.startswith(f" {shown}")
        assert len(detokenizer._utf8.getstate()[0]) <= 3


def json_with_decoder(directory: Path, decoder: decoders.Decoder, model: dict[str, object] | None = None) -> Path:
    samples.write_json_checkpoint(directory, ROWS)
    path = directory / "tokenizer.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["decoder"] = json.loads(decoder.__getstate__())
    path.write_text(json.dumps(values if model is None else values | {"model": model}), encoding="utf-8")
    return directory


def check_against_the_library(directory: Path, ids: st.SearchStrategy[list[int]]) -> None:
    """Stream and decode must be what `tokenizers` decodes, but for ids that no text is made of."""
    tokenizer = HeliumTokenizer.from_pretrained(directory)
    library = Tokenizer.from_file(str(directory / "tokenizer.json"))

    @settings(max_examples=300, deadline=None)
    @given(ids=ids, skip=st.booleans())
    def check(ids: list[int], skip: bool) -> None:
        expected = library.decode(ids, skip_special_tokens=skip)
        assert "".join(stream(tokenizer, ids, skip_special_tokens=skip)) == expected
        assert tokenizer.decode(ids, skip_special_tokens=skip) == expected

    check()


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_metaspace_is_streamed_as_the_library_decodes(
    tmp_path: Path, scheme: Literal["always", "first", "never"]
) -> None:
    directory = json_with_decoder(tmp_path, decoders.Metaspace(prepend_scheme=scheme))
    check_against_the_library(directory, id_lists())


def test_byte_level_is_streamed_as_the_library_decodes(tmp_path: Path) -> None:
    characters = "".join(pre_tokenizers.ByteLevel.alphabet())
    pieces = ["<unk>", "<s>", "</s>", "<pad>", *sorted(characters), "ä½ł", "Ġthe", "ðŁĺ", "no▁bytes", "中"]
    model = {"type": "BPE", "vocab": {piece: index for index, piece in enumerate(pieces)}, "merges": []}
    samples_only = {"added_tokens": [], "normalizer": None, "pre_tokenizer": None, "post_processor": None}
    directory = json_with_decoder(tmp_path, decoders.ByteLevel(), model)
    path = directory / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | samples_only))
    check_against_the_library(directory, st.lists(st.integers(0, len(pieces) - 1), max_size=12))


def test_the_vocabulary_is_asked_once_for_each_id_and_never_decodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: Counter[str] = Counter()

    class Backend:
        def __init__(self, backend: object) -> None:
            self._backend = backend

        def __getattr__(self, name: str) -> object:
            asked[name] += 1
            return getattr(self._backend, name)

    for directory, attribute, lookup in (
        (samples.write_json_checkpoint(tmp_path / "json"), "_tokenizer", "id_to_token"),
        (samples.write_sentencepiece_checkpoint(tmp_path / "model"), "_processor", "IdToPiece"),
    ):
        tokenizer = HeliumTokenizer.from_pretrained(directory)
        vocabulary = tokenizer._vocabulary
        ids = tokenizer.encode("the file 中 and 国")
        tokenizer.detokenizer().add_token(ids[0])  # what is read once for the whole file is read here
        monkeypatch.setattr(vocabulary, attribute, Backend(getattr(vocabulary, attribute)))
        asked.clear()
        stream(tokenizer, ids * 50)
        assert asked[lookup] == len(set(ids)) - 1
        assert not {"decode", "Decode"} & asked.keys()
