import sentencepiece

from helium_mlx.bundle.sentencepiece_model import PieceType, SentencePiece, unigram_model

BYTES = [SentencePiece(f"<0x{byte:02X}>", 0.0, PieceType.BYTE) for byte in range(256)]
PIECES = [
    SentencePiece("<unk>", 0.0, PieceType.UNKNOWN),
    SentencePiece("<s>", 0.0, PieceType.CONTROL),
    SentencePiece("</s>", 0.0, PieceType.CONTROL),
    *BYTES,
    SentencePiece("▁", -2.0, PieceType.NORMAL),
    SentencePiece("▁the", -3.5, PieceType.NORMAL),
    SentencePiece("the", -3.25, PieceType.NORMAL),
    SentencePiece("é", -4.0, PieceType.NORMAL),
]


def processor(**special_ids: int | None) -> sentencepiece.SentencePieceProcessor:
    ids = {"unk": 0, "bos": 1, "eos": 2, "pad": None} | special_ids
    return sentencepiece.SentencePieceProcessor(model_proto=unigram_model(PIECES, ids))


def test_sentencepiece_reads_every_piece_as_it_was_written() -> None:
    read = processor()
    assert [read.IdToPiece(index) for index in range(read.GetPieceSize())] == [piece.text for piece in PIECES]
    assert [round(read.GetScore(index), 6) for index in range(read.GetPieceSize())] == [piece.score for piece in PIECES]
    for index, piece in enumerate(PIECES):
        assert read.IsByte(index) == (piece.type == PieceType.BYTE)
        assert read.IsControl(index) == (piece.type == PieceType.CONTROL)
        assert read.IsUnknown(index) == (piece.type == PieceType.UNKNOWN)


def test_special_ids_are_those_that_were_said() -> None:
    read = processor()
    assert (read.unk_id(), read.bos_id(), read.eos_id(), read.pad_id()) == (0, 1, 2, -1)
    assert processor(pad=2).pad_id() == 2


def test_a_text_is_taken_as_it_is() -> None:
    read = processor()
    assert read.EncodeAsPieces("the  the") == ["the", "▁", "▁the"]
    assert read.EncodeAsPieces(" the ") == ["▁the", "▁"]
    # Not normalized: a combining accent stays what it is, in bytes.
    assert read.EncodeAsPieces("é") == ["é"]
    assert read.EncodeAsPieces("e\u0301") == ["<0x65>", "<0xCC>", "<0x81>"]
