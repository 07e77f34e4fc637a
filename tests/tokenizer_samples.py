"""A tiny Helium-shaped tokenizer, written by hand, in both of the files that a checkpoint may ship.

The layout is Helium's: `<unk>`, `<s>`, `</s>`, `<pad>`, the chat markers, 100 reserved pieces, 256 bytes, then pieces.
`sentencepiece_model` writes the protocol buffer field by field; `tokenizer_json` does what transformers'
`HeliumConverter` does, and `reference/make_tokenizer_reference.py` checks that it gives the same bytes.
"""

import json
import struct
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

DEMO = Path(__file__).parents[1] / "helium_mlx" / "demo"

BOS, EOS, PAD, IM_START, IM_END = 1, 2, 3, 4, 5
FIRST_RESERVED, LAST_RESERVED, FIRST_BYTE = 6, 105, 106
NEWLINE = FIRST_BYTE + 0x0A
FIRST_PIECE = FIRST_BYTE + 256

# Ids that the model has and the vocabulary lacks: its embedding may be padded to a round number of rows.
SPARE_IDS = 8

# The piece types of sentencepiece_model.proto.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

PIECES = (
    "▁", "▁▁", "▁the", "▁file", "▁Paris", "▁France", "▁is", "▁of", "▁capital", "▁a", "▁é", "▁Bon", "jour", "the",
    "file", "e", "t", "a", "o", "i", "n", "s", "r", "h", "l", "d", "c", "u", "m", "f", "p", "g", "b", "y", "P", "T",
    "F", "B", "é", "è", "ß", ".", ",", "!", "'", "-", "0", "1", "2", "\u00a0", "\u00a0\u00a0", "▁\u00a0", "\u200d",
    "\ufe0f", "▁👍", "😀", "\u0301", "中", "�", "\t", "\r", ">", "<0x", "ing", "▁th", "er",
)  # fmt: skip


def vocabulary(
    *, reserved_type: int = CONTROL, extra: tuple[tuple[str, int], ...] = ()
) -> list[tuple[str, float, int]]:
    """Every piece with its score and its type, in the order of the ids."""
    rows = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL), ("<pad>", 0.0, CONTROL)]
    rows += [("<|im_start|>", 0.0, reserved_type), ("<|im_end|>", 0.0, reserved_type)]
    rows += [(f"<|im_sp_{number:02d}|>", 0.0, reserved_type) for number in range(100)]
    rows += [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    # Longer pieces score higher for each character, so Unigram prefers them.
    rows += [(piece, -3.0 - 0.01 * rank - 1.0 / len(piece), NORMAL) for rank, piece in enumerate(PIECES)]
    rows += [(piece, -5.0, kind) for piece, kind in extra]
    return rows


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _message(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def sentencepiece_model(
    rows: list[tuple[str, float, int]],
    *,
    add_dummy_prefix: bool = True,
    remove_extra_whitespaces: bool = False,
    unknown_surface: str | None = None,
) -> bytes:
    """A serialized `ModelProto`: Unigram, byte fallback, no normalization table."""
    pieces = b"".join(
        _message(1, _message(1, piece.encode()) + b"\x15" + struct.pack("<f", score) + _number(3, kind))
        for piece, score, kind in rows
    )
    trainer = _number(3, 1) + _number(35, 1) + _number(40, 0) + _number(41, BOS) + _number(42, EOS) + _number(43, PAD)
    if unknown_surface is not None:
        trainer += _message(44, unknown_surface.encode())
    normalizer = _message(1, b"identity") + _number(3, add_dummy_prefix) + _number(4, remove_extra_whitespaces)
    return pieces + _message(2, trainer) + _message(3, normalizer + _number(5, 1))


def tokenizer_json(rows: list[tuple[str, float, int]]) -> str:
    """What `HeliumConverter` makes of the model with these rows."""
    # The converter reads scores from the protocol buffer, where they are float32.
    scores = [struct.unpack("<f", struct.pack("<f", score))[0] for _, score, _ in rows]
    pieces = ["\n" if piece == "<0x0A>" else piece for piece, _, _ in rows]
    tokenizer = tokenizers.Tokenizer(
        models.Unigram(list(zip(pieces, scores, strict=True)), unk_id=0, byte_fallback=True)
    )
    tokenizer.add_tokens(
        [
            tokenizers.AddedToken(piece, normalized=False, special=kind == CONTROL, single_word=True)
            for piece, _, kind in rows
            if kind in (CONTROL, USER_DEFINED)
        ]
    )
    tokenizer.add_tokens([tokenizers.AddedToken("\n", normalized=False, special=False)])
    tokenizer.enable_padding(pad_token="<pad>", pad_id=PAD)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(" "), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split("\n", "contiguous")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["<s>", "$A"], pair=["<s>", "$A", "<s>", "$B"], special_tokens=[("<s>", BOS)]
    )
    return tokenizer.to_str()


def write_config(directory: Path, *, vocab_size: int, **overrides: object) -> None:
    """The part of Helium's `config.json` that a tokenizer needs; an override of None leaves the field out."""
    fields: dict[str, object] = {"model_type": "helium", "vocab_size": vocab_size}
    fields |= {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD} | overrides
    config = {name: value for name, value in fields.items() if value is not None}
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")


def write_json_checkpoint(directory: Path, rows: list[tuple[str, float, int]] | None = None) -> Path:
    """A checkpoint directory that ships `tokenizer.json`."""
    rows = vocabulary() if rows is None else rows
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_text(tokenizer_json(rows), encoding="utf-8")
    write_config(directory, vocab_size=len(rows) + SPARE_IDS)
    return directory


def write_sentencepiece_checkpoint(
    directory: Path,
    rows: list[tuple[str, float, int]] | None = None,
    *,
    add_dummy_prefix: bool = True,
    remove_extra_whitespaces: bool = False,
    unknown_surface: str | None = None,
) -> Path:
    """A checkpoint directory that ships `tokenizer.model`."""
    rows = vocabulary() if rows is None else rows
    directory.mkdir(parents=True, exist_ok=True)
    model = sentencepiece_model(
        rows,
        add_dummy_prefix=add_dummy_prefix,
        remove_extra_whitespaces=remove_extra_whitespaces,
        unknown_surface=unknown_surface,
    )
    (directory / "tokenizer.model").write_bytes(model)
    write_config(directory, vocab_size=len(rows) + SPARE_IDS)
    return directory
