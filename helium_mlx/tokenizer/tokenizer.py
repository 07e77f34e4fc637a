"""`HeliumTokenizer`: text to token ids and back, from the tokenizer file that the checkpoint ships.

Helium's tokenizer is a SentencePiece Unigram model with byte fallback. A checkpoint carries it as `tokenizer.json`
(Hugging Face's conversion, read by `tokenizers`) or as `tokenizer.model` (read by `sentencepiece`). The file that is
there is followed to the id; where both are, `tokenizer.json` is. The two are not the same tokenizer:

- A newline is an added token in `tokenizer.json` and the text after it gets a leading space, so "the\\nfile" comes
  back as "the\\n file"; SentencePiece has the byte `<0x0A>` and no space.
- Special ids are the added tokens marked special in `tokenizer.json`, the control symbols in SentencePiece, which
  never writes them, so that `skip_special_tokens=False` changes nothing.
- A text that spells a special piece, "<unk>" or "<0x41>" gets that id by `tokenizer.json`, letters by SentencePiece.
- `<unk>` is not a special id in either; it decodes to "<unk>" in `tokenizer.json` and to " ⁇ " in SentencePiece.
- A skipped special token within the bytes of a character goes unnoticed in `tokenizer.json`; in SentencePiece it ends
  them. (Bytes that are not UTF-8 are decoded alike; see `detokenizer.py`.)

Against transformers: bos, eos and pad come from `config.json` and `generation_config.json`, because Helium's
`special_tokens_map.json` is empty; an encoding with special tokens has exactly one leading BOS, even where the text
spells one itself; the padding and truncation rules of the files are switched off; padding goes to the left unless told.
It does not know chat templates, pairs of texts, or training.
"""

import functools
import operator
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Literal, NoReturn, SupportsIndex, TypeAlias, TypeVar, cast, overload

from helium_mlx.checkpoint.config import HeliumConfig
from helium_mlx.checkpoint.generation_config import is_no_token
from helium_mlx.checkpoint.kyutai_config import inferred_values
from helium_mlx.errors import CheckpointError, TokenizerError, lone_surrogate, shown
from helium_mlx.files.atomic import write_json
from helium_mlx.files.local_paths import published, published_text
from helium_mlx.files.names import SETTINGS_FILES, TEMPLATE_SUFFIX, companion_files, relative_name
from helium_mlx.files.untrusted import MAX_JSON_BYTES, FileProblem, UnreadableFile, read_json_object, require_file
from helium_mlx.option_values import plain, whole
from helium_mlx.table import short_repr
from helium_mlx.tokenizer.declared import has_chat_template, read_declared
from helium_mlx.tokenizer.detokenizer import WORD_SEPARATOR, Piece, StreamingDetokenizer
from helium_mlx.tokenizer.vocabularies import MAX_TOKENIZER_BYTES, JsonVocabulary, SentencePieceVocabulary

if TYPE_CHECKING:
    import mlx.core as mx


JSON_FILE = "tokenizer.json"
SENTENCEPIECE_FILE = "tokenizer.model"

_RESERVED_PIECE = re.compile(r"<\|im_sp_\d+\|>")

# What may be assigned, beside the attributes that a class has.
_SETTABLE = (
    "bos_token_id", "bos_token", "eos_token_ids", "eos_token_id", "eos_token", "pad_token_id", "pad_token",
    "padding_side", "truncation_side",
)  # fmt: skip

Side: TypeAlias = Literal["left", "right"]
Ids: TypeAlias = "SupportsIndex | Iterable[SupportsIndex] | mx.array"
Padding: TypeAlias = "bool | Literal['longest', 'max_length', 'do_not_pad']"
Truncation: TypeAlias = "bool | Literal['longest_first', 'do_not_truncate']"
Encoded = TypeVar("Encoded")


@dataclass(frozen=True, eq=False)
class BatchEncoding(Mapping[str, Encoded], Generic[Encoded]):
    """What calling the tokenizer gives: a mapping, for `model(**encoding)`, whose keys are attributes too."""

    input_ids: Encoded
    attention_mask: Encoded

    def __getitem__(self, key: str) -> Encoded:
        if key not in self.__dataclass_fields__:
            raise KeyError(key)
        return cast("Encoded", getattr(self, key))

    def __iter__(self) -> Iterator[str]:
        return iter(self.__dataclass_fields__)

    def __len__(self) -> int:
        return len(self.__dataclass_fields__)

    def to(self, device: object) -> "BatchEncoding[Encoded]":
        """Return the encoding itself: MLX's arrays are on no device of their own."""
        return self


@dataclass(frozen=True)
class _ModelIds:
    """What `config.json` and `generation_config.json` say about ids."""

    bos: int
    eos: tuple[int, ...]
    pad: int | None
    vocab_size: int | None


class HeliumTokenizer:
    """Text to ids and back, exactly as the checkpoint's tokenizer file has it. Made by `from_pretrained`."""

    def __init__(
        self, vocabulary: JsonVocabulary | SentencePieceVocabulary, ids: _ModelIds, files: Sequence[Path]
    ) -> None:
        self._vocabulary = vocabulary
        self._files = tuple(files)
        self._id_limit = max(len(self), ids.vocab_size or 0)
        self.bos_token_id: int = ids.bos
        self.eos_token_ids: tuple[int, ...] = ids.eos
        self.pad_token_id: int | None = ids.pad
        self.padding_side: Side = "left"
        self.truncation_side: Side = "right"

    @classmethod
    def from_pretrained(
        cls, path_or_repo: str | Path, *, revision: str | None = None, subfolder: str | None = None
    ) -> "HeliumTokenizer":
        """Read the tokenizer of a checkpoint directory, a Hub repository, or "demo", or of a subfolder of one.

        Raises TokenizerError for a missing or malformed file, and for ids in the configs that the vocabulary lacks.
        """
        plain = subfolder is None and Path(path_or_repo).is_dir()
        directory = Path(path_or_repo) if plain else _directory_of(path_or_repo, revision, subfolder)
        if not directory.is_dir():
            raise TokenizerError(f"{directory} is not a directory; name one that holds {JSON_FILE} and config.json")
        model_files = _sentencepiece_files(directory)
        if os.path.lexists(directory / JSON_FILE):
            vocabulary = JsonVocabulary(directory / JSON_FILE, read_declared(directory))
        elif model_files:
            vocabulary = SentencePieceVocabulary(model_files[0], read_declared(directory))
        else:
            raise TokenizerError(
                f"{directory} has neither {JSON_FILE} nor {SENTENCEPIECE_FILE}; copy one of them there"
            )
        ids = _read_model_ids(directory)
        _check_model_ids(ids, vocabulary.size, directory)
        own = [directory / JSON_FILE] if os.path.lexists(directory / JSON_FILE) else []
        own += model_files
        files = [*own, *companion_files(directory)]
        for path in files:
            _require_readable(path, MAX_TOKENIZER_BYTES if path in own else MAX_JSON_BYTES)
        tokenizer = cls(vocabulary, ids, files)
        # An id that is added to every text fails here, not at the first prompt.
        tokenizer.encode("")
        return tokenizer

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that it was read from, and those that stand beside them."""
        return self._files

    def __repr__(self) -> str:
        # The last attribute that is set: without it, this is one whose making failed.
        if "truncation_side" not in vars(self):
            return object.__repr__(self)
        return short_repr(
            self,
            vocab_size=self.vocab_size,
            added=len(self) - self.vocab_size,
            bos_token_id=self.bos_token_id,
            eos_token_ids=self.eos_token_ids,
            pad_token_id=self.pad_token_id,
        )

    def __len__(self) -> int:
        """The number of ids with a piece, added tokens included."""
        return self._vocabulary.size

    @property
    def is_extended(self) -> bool:
        """Whether `tokenizer_config.json` or another file beside the vocabulary's declares tokens that it lacks."""
        return self._vocabulary.is_extended

    @property
    def vocab_size(self) -> int:
        """The number of ids of the model itself, without added tokens, as transformers counts it."""
        return self._vocabulary.base_size

    def __setattr__(self, name: str, value: object) -> None:
        """Set what has an effect, checked. Raises TokenizerError for an attribute that would have none."""
        if name in ("padding_side", "truncation_side"):
            value = _side(name, value)
        elif name == "bos_token_id":
            [value] = self._checked([cast("SupportsIndex", value)])
        elif name == "eos_token_ids":
            value = tuple(self._checked(cast("Iterable[SupportsIndex]", value)))
        elif name == "pad_token_id" and value is not None:
            [value] = self._checked([cast("SupportsIndex", value)])
        elif not name.startswith("_") and not hasattr(type(self), name) and name not in _SETTABLE:
            raise TokenizerError(
                f"a HeliumTokenizer's {name} cannot be set, since nothing reads it; {', '.join(_SETTABLE)} can"
            )
        object.__setattr__(self, name, value)
        if name == "bos_token_id":
            self.__dict__.pop("_spelled_bos", None)

    @property
    def eos_token_id(self) -> int:
        """The first of `eos_token_ids`; setting it makes it the only one."""
        return self.eos_token_ids[0]

    @eos_token_id.setter
    def eos_token_id(self, index: int) -> None:
        self.eos_token_ids = (index,)

    @property
    def bos_token(self) -> str:
        """The piece of `bos_token_id`; setting it sets that."""
        return self.convert_ids_to_tokens(self.bos_token_id)

    @bos_token.setter
    def bos_token(self, token: str) -> None:
        self.bos_token_id = self.convert_tokens_to_ids(token)

    @property
    def eos_token(self) -> str:
        """The piece of `eos_token_id`; setting it sets that."""
        return self.convert_ids_to_tokens(self.eos_token_id)

    @eos_token.setter
    def eos_token(self, token: str) -> None:
        self.eos_token_id = self.convert_tokens_to_ids(token)

    @property
    def pad_token(self) -> str | None:
        """The piece of `pad_token_id`, None for none; setting it sets that."""
        return None if self.pad_token_id is None else self.convert_ids_to_tokens(self.pad_token_id)

    @pad_token.setter
    def pad_token(self, token: str | None) -> None:
        self.pad_token_id = None if token is None else self.convert_tokens_to_ids(token)

    @property
    def special_ids(self) -> frozenset[int]:
        """The ids that `skip_special_tokens` leaves out."""
        return self._vocabulary.special_ids

    @functools.cached_property
    def reserved_ids(self) -> frozenset[int]:
        """The untrained `<|im_sp_NN|>` ids, found by their names."""
        return frozenset(index for token, index in self._vocabulary.tokens() if _RESERVED_PIECE.fullmatch(token))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of a text: one BOS and the text's own, or the text's own alone.

        Raises TokenizerError for anything but a string, and for one with lone surrogates, which UTF-8 cannot express.
        """
        if not isinstance(text, str):
            raise TokenizerError(f"cannot encode {type(text).__name__} {text!r}; expected a string")
        _require_utf8(text)
        if not add_special_tokens:
            return self._known(self._vocabulary.encode(text, add_special_tokens=False))
        if self._spelled_bos:
            text = without_prefixes(text, self._spelled_bos)
        ids = self._known(self._vocabulary.encode(text, add_special_tokens=True))
        start = 0
        while start < len(ids) and ids[start] == self.bos_token_id:
            start += 1
        return [self.bos_token_id, *ids[start:]]

    @functools.cached_property
    def _spelled_bos(self) -> str:
        """The text that the vocabulary reads as a BOS; "" if none is."""
        spelled = self._vocabulary.token(self.bos_token_id)
        found = spelled and self.bos_token_id in self._vocabulary.encode(spelled, add_special_tokens=False)
        return spelled if spelled and found else ""

    def _known(self, ids: list[int]) -> list[int]:
        """Return ids of a text. Raises TokenizerError for one that the model has no embedding of.

        Every prompt, score and calibration text comes through here: what a post-processor adds is not bound to the
        vocabulary, and an id beyond the embeddings reads foreign memory.
        """
        highest = max(ids, default=0)
        if highest >= self._id_limit:
            raise TokenizerError(
                f"the tokenizer gives a text the id {highest}; the model has 0 to {self._id_limit - 1}: take "
                "tokenizer and config from one checkpoint"
            )
        return ids

    def decode(
        self, ids: Ids, *, skip_special_tokens: bool = True, clean_up_tokenization_spaces: bool | None = None
    ) -> str:
        """Return the text of the ids, as the file's library gives it, but for bytes that are not UTF-8.

        Of those, each beginning of a character that breaks off is one U+FFFD, and whole characters are kept. An id that
        the model has and the vocabulary lacks stands for nothing. Raises TokenizerError for any other.
        """
        if clean_up_tokenization_spaces:
            raise TokenizerError("clean_up_tokenization_spaces is True; Helium's text needs none: leave it out")
        return self._vocabulary.decode(self._checked(ids), skip_special_tokens=skip_special_tokens)

    def library_text(self, ids: Ids, *, skip_special_tokens: bool = True) -> str:
        """Return the text of the ids, as the file's library gives it, also for bytes that are not UTF-8."""
        return self._vocabulary.library_text(self._checked(ids), skip_special_tokens=skip_special_tokens)

    def batch_decode(
        self,
        sequences: "Iterable[Iterable[SupportsIndex]] | mx.array",
        *,
        skip_special_tokens: bool = True,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """Return the text of every sequence of ids, which is never cleaned up: Helium's spaces are as they were."""
        options = {
            "skip_special_tokens": skip_special_tokens,
            "clean_up_tokenization_spaces": clean_up_tokenization_spaces,
        }
        return [self.decode(ids, **options) for ids in cast("Iterable[Iterable[SupportsIndex]]", sequences)]

    def detokenizer(self, *, skip_special_tokens: bool = True) -> StreamingDetokenizer:
        """Return a fresh detokenizer; its pieces joined are what `decode` gives.

        Raises TokenizerError if `tokenizer.json` has a decoder that is not known.
        """
        return self._vocabulary.detokenizer(self._piece, skip_special_tokens=skip_special_tokens)

    @overload
    def convert_ids_to_tokens(self, ids: SupportsIndex, *, skip_special_tokens: bool = False) -> str: ...

    @overload
    def convert_ids_to_tokens(
        self, ids: "Iterable[SupportsIndex] | mx.array", *, skip_special_tokens: bool = False
    ) -> list[str]: ...

    def convert_ids_to_tokens(self, ids: Ids, *, skip_special_tokens: bool = False) -> str | list[str]:
        """Return the piece of one id, or of each; "" where the model has an id that the vocabulary lacks."""
        plain = _without_arrays(ids)
        checked = self._checked(plain)
        if not isinstance(plain, Iterable):
            return self._vocabulary.token(checked[0]) or ""
        skipped = self.special_ids if skip_special_tokens else frozenset[int]()
        return [self._vocabulary.token(index) or "" for index in checked if index not in skipped]

    def token_bytes(self, index: int) -> bytes:
        """Return the bytes that an id stands for inside of a text; a special id stands for its name."""
        piece = self._piece(index)
        if isinstance(piece, int):
            return bytes((piece,))
        if isinstance(piece, bytes):
            return piece
        return (piece or "").replace(WORD_SEPARATOR, " ").encode()

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int: ...

    @overload
    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int]: ...

    def convert_tokens_to_ids(self, tokens: str | list[str]) -> int | list[int]:
        """Return the id of one piece, or of each. Raises TokenizerError for a piece that there is not."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        _require_utf8(tokens)
        index = self._vocabulary.index(tokens)
        if index is None:
            raise TokenizerError(
                f"the vocabulary has no piece {shown(tokens)}; encode() splits a text into those it has"
            )
        return index

    def begins_word(self, index: int) -> bool:
        """Return whether a text that begins with this id leaves out the space before it, as its decoder has it."""
        is_spaced = self.token_bytes(index).startswith(b" ")
        return is_spaced and not self.decode([index], skip_special_tokens=False).startswith(" ")

    def one_token(self, token: int | str) -> int:
        """Return the id of a token that is given as its id, its piece, or a text that is one token.

        Raises TokenizerError for an id that the model lacks, and for a text of several tokens or none.
        """
        if not isinstance(token, str):
            return self._checked([token])[0]
        _require_utf8(token)
        index = self._vocabulary.index(token)
        if index is not None:
            return index
        ids = self.encode(token, add_special_tokens=False)
        if len(ids) != 1:
            pieces = ", ".join(shown(self._vocabulary.token(each)) for each in ids[:4])
            raise TokenizerError(
                f"{shown(token)} is {len(ids)} tokens{f' ({pieces})' if ids else ''}; expected a text that is one, or "
                "an id"
            )
        return ids[0]

    @overload
    def __call__(
        self, text: str | Sequence[str], *, add_special_tokens: bool = True, padding: Padding = False,
        padding_side: Side | None = None, truncation: Truncation = False, max_length: int | None = None,
        return_tensors: Literal["mlx"],
    ) -> "BatchEncoding[mx.array]": ...  # fmt: skip

    @overload
    def __call__(  # pyright: ignore[reportOverlappingOverload]
        self, text: str, *, add_special_tokens: bool = True, padding: Padding = False,
        padding_side: Side | None = None, truncation: Truncation = False, max_length: int | None = None,
        return_tensors: None = None,
    ) -> BatchEncoding[list[int]]: ...  # fmt: skip

    @overload
    def __call__(
        self, text: Sequence[str], *, add_special_tokens: bool = True, padding: Padding = False,
        padding_side: Side | None = None, truncation: Truncation = False, max_length: int | None = None,
        return_tensors: None = None,
    ) -> BatchEncoding[list[list[int]]]: ...  # fmt: skip

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        add_special_tokens: bool = True,
        padding: Padding = False,
        padding_side: Side | None = None,
        truncation: Truncation = False,
        max_length: int | None = None,
        return_tensors: Literal["mlx"] | None = None,
    ) -> "BatchEncoding[mx.array] | BatchEncoding[list[int]] | BatchEncoding[list[list[int]]]":
        """Encode one text or several, as lists or, with `return_tensors="mlx"`, as int32 arrays of shape (B, L).

        `padding` pads to the longest, or with "max_length" to `max_length` ids, on `padding_side` (None: the
        attribute's). `truncation` cuts every encoding to `max_length` ids, on `truncation_side`, BOS excepted.
        Raises TokenizerError for texts of unequal length as arrays without padding.
        """
        side = self.padding_side if padding_side is None else _side("padding_side", padding_side)
        pads = _choice("padding", padding, {True: "longest", False: "do_not_pad"}, ("max_length",))
        cuts = _choice("truncation", truncation, {True: "longest_first", False: "do_not_truncate"}) == "longest_first"
        if return_tensors not in (None, "mlx"):
            raise TokenizerError(
                f"return_tensors is {return_tensors!r}; expected None (lists) or 'mlx', the arrays that models take"
            )
        is_read = cuts or pads == "max_length"
        if is_read != (max_length is not None) or (max_length is not None and _whole(max_length) < 1):
            raise TokenizerError(
                f"truncation is {truncation}, padding is {padding} and max_length is {max_length}; give "
                "truncation=True or padding='max_length' with a positive max_length, or none of them"
            )
        if not isinstance(text, str) and (isinstance(text, (bytes, Mapping)) or not isinstance(text, Iterable)):
            raise TokenizerError(f"cannot encode {type(text).__name__} {shown(text)}; expected a string or several")
        texts = [text] if isinstance(text, str) else list(text)
        rows = [self.encode(item, add_special_tokens=add_special_tokens) for item in texts]
        if cuts:
            rows = [self._cut(row, max_length or 0, has_bos=add_special_tokens) for row in rows]
        masks = [[1] * len(row) for row in rows]
        if pads != "do_not_pad":
            length = max_length if pads == "max_length" and max_length else max(map(len, rows), default=0)
            rows, masks = self._padded(rows, masks, length, side)
        if return_tensors == "mlx":
            return _as_arrays(rows, masks)
        return BatchEncoding(rows[0], masks[0]) if isinstance(text, str) else BatchEncoding(rows, masks)

    def apply_chat_template(self, *_args: object, **_kwargs: object) -> NoReturn:
        """Raise TokenizerError: Helium has no chat template, and that of a model tuned from it is not applied here."""
        if self.has_chat_template:
            raise TokenizerError(
                "the chat template that came with this tokenizer is not applied here; have transformers render it "
                "(apply_chat_template(..., tokenize=False)), and give the text"
            )
        raise TokenizerError("Helium is a base model without a chat template; give a text for it to continue")

    @property
    def has_chat_template(self) -> bool:
        """Whether a template for chats came with it; nothing here applies one."""
        return has_chat_template(self._files[0].parent)

    def trailing_space_warning(self, prompt: str) -> str | None:
        """Return a line to show the user if the prompt ends in a space that becomes a token of its own, else None.

        The space of the next word belongs to that word's piece ("▁Paris"); after a lone "▁" no piece fits well.
        """
        if not prompt.endswith(" "):
            return None
        ids = self.encode(prompt, add_special_tokens=False)
        last = self._vocabulary.token(ids[-1]) if ids else None
        if last is None or not last.endswith(WORD_SEPARATOR):
            return None
        return (
            f"the prompt ends in a space, which becomes the token {last!r} of its own and makes for a poor completion; "
            "drop it: the model writes the space before the next word itself (--heal does so)"
        )

    def save_pretrained(self, path: str | Path) -> tuple[str, ...]:
        """Copy the tokenizer's files, byte for byte, to a directory, which is made where missing; return their paths.

        `config.json`, which holds the special ids, is the model's and is not written. Of a path of this machine in
        the settings the last part is left.
        """
        directory = Path(path)
        saved: list[str] = []
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for source in self._files:
                target = directory / relative_name(source, self._files[0].parent)
                target.parent.mkdir(exist_ok=True)
                if not (target.exists() and target.samefile(source)):
                    _copy(source, target, self._files[0].parent)
                saved.append(str(target))
        except OSError as error:
            raise TokenizerError(
                f"the tokenizer cannot be saved in {directory}: {error.strerror}; name another place"
            ) from error
        return tuple(saved)

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, commit_message: str | None = None) -> str:
        """Upload what `save_pretrained` writes to a Hub repository, made if need be; return the commit's address.

        Raises UsageError for a name that no repository has, and UploadError, one line, if the Hub refuses.
        """
        from helium_mlx.files.hub_push import push

        return push(
            self.save_pretrained,
            repo_id,
            private=private,
            commit_message=commit_message,
            what="a Helium tokenizer",
        )

    def _cut(self, row: list[int], length: int, *, has_bos: bool) -> list[int]:
        if self.truncation_side == "right" or len(row) <= length:
            return row[:length]
        kept = row[:1] if has_bos else []
        return kept + row[len(row) - length + len(kept) :]

    def _padded(
        self, rows: list[list[int]], masks: list[list[int]], length: int, side: "Side"
    ) -> tuple[list[list[int]], list[list[int]]]:
        if self.pad_token_id is None:
            raise TokenizerError("config.json has no pad_token_id, so nothing can be padded; add it there")

        def pad(row: list[int], filler: int) -> list[int]:
            fill = [filler] * (length - len(row))
            return fill + row if side == "left" else row + fill

        return [pad(row, self.pad_token_id) for row in rows], [pad(mask, 0) for mask in masks]

    def _piece(self, index: int) -> Piece:
        if not 0 <= index < self._id_limit:
            self._checked(index)
        return self._vocabulary.piece(index)

    def _checked(self, ids: Ids) -> list[int]:
        """The ids as a list of integers, each of which the model has."""
        values = _without_arrays(ids)
        given = values if isinstance(values, Iterable) and not isinstance(values, str | bytes) else [values]
        checked: list[int] = []
        for value in given:
            if isinstance(value, bool) or not isinstance(value, SupportsIndex):
                raise TokenizerError(f"{value!r} is not a token id; expected an integer")
            index = operator.index(value)
            if not 0 <= index < self._id_limit:
                raise TokenizerError(f"token id {index} is out of range; expected 0 to {self._id_limit - 1}")
            checked.append(index)
        return checked


def _whole(value: object) -> int:
    return whole(value) or 0


def _side(name: str, value: object) -> "Side":
    if value not in ("left", "right"):
        raise TokenizerError(f"{name} is {shown(value)}; expected 'left' or 'right'")
    return cast("Side", value)


def _choice(name: str, value: object, switches: Mapping[bool, str], others: tuple[str, ...] = ()) -> str:
    """Return what a switch or a word of transformers' asks for. Raises TokenizerError for anything else."""
    words, value = (*switches.values(), *others), plain(value)
    if isinstance(value, bool):
        return switches[value]
    if isinstance(value, str) and value in words:
        return value
    raise TokenizerError(f"{name} is {shown(value)}; expected True, False, {', '.join(map(repr, words))}")


def _require_utf8(text: str) -> None:
    found = lone_surrogate(text)
    if found is not None:
        raise TokenizerError(
            f"the text has {found}, which no tokenizer can express; read it as UTF-8 with errors='replace'"
        )


def without_prefixes(text: str, prefix: str) -> str:
    """Return a text without what it begins with, as often as it does."""
    start = 0
    while text.startswith(prefix, start):
        start += len(prefix)
    return text[start:]


def _directory_of(path_or_repo: str | Path, revision: str | None, subfolder: str | None) -> Path:
    # Imported here: it brings the models in, which a tokenizer alone does not need.
    from helium_mlx.files.hub import resolve

    try:
        return resolve(path_or_repo, revision=revision, subfolder=subfolder)
    except CheckpointError as error:
        raise TokenizerError(str(error)) from None


def _without_arrays(ids: Ids) -> SupportsIndex | Iterable[SupportsIndex]:
    """An array of any library as the list, or the number, that it holds."""
    tolist = getattr(ids, "tolist", None)
    return cast("SupportsIndex | Iterable[SupportsIndex]", ids if tolist is None else tolist())


def _as_arrays(rows: list[list[int]], masks: list[list[int]]) -> "BatchEncoding[mx.array]":
    lengths = sorted({len(row) for row in rows})
    if len(lengths) != 1 or lengths == [0]:
        raise TokenizerError(
            f"texts of {', '.join(map(str, lengths)) or 'no'} tokens do not make one array; give some text and "
            "padding=True"
        )
    import mlx.core as mx

    return BatchEncoding(mx.array(rows, dtype=mx.int32), mx.array(masks, dtype=mx.int32))


def _copy(source: Path, target: Path, directory: Path) -> None:
    """Copy a file of `directory` byte for byte, but for settings and templates that hold a path of this machine."""
    if source.suffix == TEMPLATE_SUFFIX:
        target.write_bytes(published_text(source.read_bytes(), directory))
        return
    values: dict[str, object] = {}
    if source.name in SETTINGS_FILES:
        with suppress(FileProblem):
            values = read_json_object(source)
    cleaned = published(values, directory)
    if cleaned == values:
        target.write_bytes(source.read_bytes())
    else:
        write_json(target, cleaned)


def _sentencepiece_files(directory: Path) -> list[Path]:
    """The SentencePiece model: `tokenizer.model`, else the only `tokenizer*.model`, as Kyutai's own MLX repo has it."""
    named = directory / SENTENCEPIECE_FILE
    if os.path.lexists(named):
        return [named]
    found = sorted(path for path in directory.glob("tokenizer*.model") if path.name.isprintable())
    return found if len(found) == 1 else []


def _read_model_ids(directory: Path) -> _ModelIds:
    """Read the ids; like transformers' generation, take `generation_config.json`'s eos where it has one."""
    config = _read_config(directory)
    generation_path = directory / "generation_config.json"
    try:
        generation = read_json_object(generation_path) if os.path.lexists(generation_path) else {}
    except UnreadableFile as problem:
        raise TokenizerError(f"{generation_path} {problem}") from None
    except FileProblem:
        # As in transformers, the config alone then says when text ends; loading and converting warn of it.
        generation = {}
    where = directory / "config.json"
    bos = _ids_of(where, "bos_token_id", config.get("bos_token_id", generation.get("bos_token_id")))
    ends = generation.get("eos_token_id")
    eos_of = config if is_no_token(ends) else generation
    eos = _ids_of(where if eos_of is config else generation_path, "eos_token_id", eos_of.get("eos_token_id"))
    pad = _ids_of(where, "pad_token_id", config.get("pad_token_id", generation.get("pad_token_id")))
    if len(bos) != 1:
        raise TokenizerError(
            f"{where} has bos_token_id {shown(list(bos) or None)}; expected one id (Helium's is 1); add it"
        )
    if not eos:
        raise TokenizerError(f"{where} has no eos_token_id, so generation could not stop; add it (Helium's is 2)")
    vocab_size = config.get("vocab_size")
    if vocab_size is not None and (type(vocab_size) is not int or vocab_size < 1):
        raise TokenizerError(f"{where} has vocab_size {shown(vocab_size)}; expected a positive integer")
    # Llama configs say -1 for none.
    return _ModelIds(bos[0], eos, pad[0] if pad and pad[0] >= 0 else None, vocab_size)


def _read_config(directory: Path) -> dict[str, object]:
    path = directory / "config.json"
    try:
        if inferred_values(directory) is not None:
            return HeliumConfig.of_directory(directory).to_dict()
    except CheckpointError as error:
        raise TokenizerError(str(error)) from None
    return _read_object(path)


def _check_model_ids(ids: _ModelIds, size: int, directory: Path) -> None:
    if ids.vocab_size is not None and size > ids.vocab_size:
        raise TokenizerError(
            f"the tokenizer in {directory} has {size} pieces, but config.json has vocab_size {shown(ids.vocab_size)}; "
            "the two belong to different models: take both from one checkpoint"
        )
    named = [("bos", ids.bos), *(("eos", index) for index in ids.eos)]
    named += [("pad", ids.pad)] if ids.pad is not None else []
    # One that the model has and the tokenizer lacks is never read, but may be generated.
    limit = ids.vocab_size or size
    for name, index in named:
        if not 0 <= index < limit:
            raise TokenizerError(
                f"the configs of {directory} have {name}_token_id {shown(index)}; expected 0 to {limit - 1}, the ids "
                "of its model: take both from one checkpoint"
            )


def _ids_of(path: Path, name: str, value: object) -> tuple[int, ...]:
    """One id or a list of them, or none, as a tuple without repetitions."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    if any(type(index) is not int for index in values):
        raise TokenizerError(f"{path} has {name} {shown(value)}; expected an integer or a list of integers")
    return tuple(dict.fromkeys(cast("list[int]", values)))


def _read_object(path: Path) -> dict[str, object]:
    try:
        return read_json_object(path)
    except FileProblem as problem:
        raise TokenizerError(f"{path} {problem}") from None


def _require_readable(path: Path, max_bytes: int) -> None:
    try:
        require_file(path, max_bytes)
    except FileProblem as problem:
        raise TokenizerError(f"{path} {problem}") from None
