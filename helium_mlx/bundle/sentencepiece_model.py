"""Writes SentencePiece's file, `tokenizer.model`: a protocol buffer of pieces with scores and types.

Field numbers and defaults: `sentencepiece_model.proto`, in google/sentencepiece. Written are a Unigram model with byte
fallback and no normalization table, which is what a Helium has; nothing is read here.
"""

import struct
from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import NamedTuple


class PieceType(IntEnum):
    """What a piece is for: only normal ones are found in a text, and bytes stand in for what is not found."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    BYTE = 6


class SentencePiece(NamedTuple):
    """One piece; its id is its place in the list."""

    text: str
    score: float
    type: PieceType


_MODEL_PIECES, _MODEL_TRAINER, _MODEL_NORMALIZER = 1, 2, 3
_PIECE_TEXT, _PIECE_SCORE, _PIECE_TYPE = 1, 2, 3
_TRAINER_MODEL_TYPE, _TRAINER_VOCAB_SIZE, _TRAINER_BYTE_FALLBACK = 3, 4, 35
_TRAINER_IDS = {"unk": 40, "bos": 41, "eos": 42, "pad": 43}
_TRAINER_PIECES = {"unk": 45, "bos": 46, "eos": 47, "pad": 48}
_NORMALIZER_NAME, _NORMALIZER_PREFIX, _NORMALIZER_REMOVES_SPACES, _NORMALIZER_ESCAPES_SPACES = 1, 3, 4, 5
_UNIGRAM = 1


def unigram_model(pieces: Iterable[SentencePiece], special_ids: Mapping[str, int | None]) -> bytes:
    """Return the contents of a `tokenizer.model`.

    `special_ids` says which of `pieces` are "unk", "bos" and "eos", and "pad", which may be None: there is none. A text
    is taken as it is: its spaces become U+2581, none is removed, and none put in front.
    """
    listed = list(pieces)
    trainer = _number(_TRAINER_MODEL_TYPE, _UNIGRAM) + _number(_TRAINER_VOCAB_SIZE, len(listed))
    trainer += _number(_TRAINER_BYTE_FALLBACK, 1)
    for name, index in special_ids.items():
        if index is not None:
            trainer += _number(_TRAINER_IDS[name], index) + _bytes(_TRAINER_PIECES[name], listed[index].text.encode())
    normalizer = _bytes(_NORMALIZER_NAME, b"identity") + _number(_NORMALIZER_PREFIX, 0)
    normalizer += _number(_NORMALIZER_REMOVES_SPACES, 0) + _number(_NORMALIZER_ESCAPES_SPACES, 1)
    written = b"".join(_bytes(_MODEL_PIECES, _piece(piece)) for piece in listed)
    return written + _bytes(_MODEL_TRAINER, trainer) + _bytes(_MODEL_NORMALIZER, normalizer)


def _piece(piece: SentencePiece) -> bytes:
    return (
        _bytes(_PIECE_TEXT, piece.text.encode()) + _float(_PIECE_SCORE, piece.score) + _number(_PIECE_TYPE, piece.type)
    )


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
