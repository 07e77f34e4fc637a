"""Lets mlx-lm's own tools take our model: `batch_generate`, its LoRA trainer, its server.

    model, tokenizer = adapt(*helium_mlx.load("demo"))
    mlx_lm.batch_generate(model, tokenizer, [tokenizer.encode("Bonjour")])
    mlx_lm.server.run("127.0.0.1", 8080, model_provider(*helium_mlx.load("demo")))

mlx-lm is not a dependency of this package: `pip install mlx-lm`. It brings transformers along, so nothing else imports
this module. The adapted model shares its weights with ours: LoRA layers that mlx-lm puts into it are in both.

LoRA sees the merged projections (`self_attn.qkv_proj`, `mlp.gate_up_proj`), so its adapters fit this adapter only, and
not mlx-lm's own Helium. Helium, a base model, has no chat template; that of a model tuned from it is read, and one may
be set (`tokenizer.chat_template = …`), which mlx-lm's prompt-and-completion data need. Without one, the server's chat
requests get mlx-lm's plain rendering.
"""

from argparse import Namespace
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from helium_mlx.errors import HeliumError
from helium_mlx.kv_cache.cache import KVCache
from helium_mlx.kv_cache.masks import Mask
from helium_mlx.model.helium import HeliumDecoderLayer, HeliumForCausalLM
from helium_mlx.tokenizer.declared import declared_name, read_chat_template
from helium_mlx.tokenizer.detokenizer import StreamingDetokenizer
from helium_mlx.tokenizer.tokenizer import BatchEncoding, HeliumTokenizer, Padding, Side, Truncation

try:
    from mlx_lm.models.base import scaled_dot_product_attention
    from mlx_lm.tokenizer_utils import TokenizerWrapper
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase
except ImportError as error:
    raise HeliumError(f"mlx-lm is not there ({error}): pip install mlx-lm") from None

if TYPE_CHECKING:
    import torch

Framework: TypeAlias = Literal["mlx", "np", "pt"]
Encoded: TypeAlias = "list[int] | mx.array | np.ndarray | torch.Tensor"

DEFAULT_MODEL = "default_model"

# The flags of `mlx_lm.server` (0.32) with its defaults; its parser is inside of its `main`.
SERVER_FLAGS: dict[str, object] = {
    "allowed_origins": "*",
    "decode_concurrency": 32,
    "kv_bits": None,
    "kv_group_size": 64,
    "max_tokens": 512,
    "min_p": 0.0,
    "prefill_step_size": 2048,
    "prompt_cache_bytes": None,
    "prompt_cache_size": 10,
    "prompt_concurrency": 8,
    "quantized_kv_start": 5000,
    "temp": 0.0,
    "top_k": 0,
    "top_p": 1.0,
}

# Those about models that the server would load itself.
_FIXED_FLAGS: dict[str, object] = {
    "adapter_path": None,
    "chat_template": "",
    "chat_template_args": {},
    "draft_model": None,
    "model": None,
    "num_draft_tokens": 3,
    "pipeline": False,
    "trust_remote_code": False,
    "use_default_chat_template": False,
}


class MlxLmCache(Protocol):
    """What the caches of `mlx_lm.models.cache` have in common: KVCache, RotatingKVCache, BatchKVCache and the others.

    `offset` is the position of the next token: a number, or one for each row, below 0 where padding comes first.
    """

    offset: int | mx.array

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append keys and values; return all that attention sees."""
        ...

    def make_mask(self, N: int, *, window_size: int | None, return_array: bool) -> Mask:
        """Return the attention mask for `N` new tokens."""
        ...


class LayerCache:
    """One layer's mlx-lm cache in the terms of `helium_mlx.cache`, for the length of one forward pass."""

    def __init__(self, cache: MlxLmCache) -> None:
        self.cache = cache

    @property
    def offset(self) -> int | mx.array:
        """The position of the next token, of all rows or of each."""
        return self.cache.offset

    def mask(self, length: int) -> Mask:
        """Return the attention mask for `length` new tokens."""
        return self.cache.make_mask(length, window_size=None, return_array=False)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append keys and values; return all that attention sees."""
        return self.cache.update_and_fetch(keys, values)

    def attend(self, queries: mx.array, keys: mx.array, values: mx.array, *, scale: float, mask: Mask) -> mx.array:
        """Append keys and values, and return the attention of `queries`."""
        keys, values = self.cache.update_and_fetch(keys, values)
        # mlx-lm's, since only it knows how its quantized caches hold keys and values.
        return scaled_dot_product_attention(queries, keys, values, cache=self.cache, scale=scale, mask=mask)  # pyright: ignore[reportArgumentType]

    def attend_joined(self, queries: mx.array, keys_values: mx.array, *, scale: float, mask: Mask) -> mx.array:
        """Do what `attend` does, with keys and then values in one array of two rows."""
        return self.attend(queries, keys_values[:1], keys_values[1:], scale=scale, mask=mask)


class MlxLmModel(nn.Module):
    """Our causal LM as mlx-lm's tools call one: ids (B, L) and a list of its caches in, logits (B, L, vocab_size) out.

    It has no `make_cache`, so that mlx-lm makes the caches that its own options ask for.
    """

    def __init__(self, model: HeliumForCausalLM) -> None:
        super().__init__()
        self.model = model
        self.args = SimpleNamespace(**model.config.to_dict())
        self.model_type = model.config.model_type

    def __call__(self, inputs: mx.array, cache: Sequence[object] | None = None) -> mx.array:
        """Return the logits of every position."""
        decoder = self.model.model
        layers = None if cache is None else [LayerCache(cast(MlxLmCache, layer)) for layer in cache]
        positions = None
        if layers is not None and isinstance(layers[0].offset, mx.array):
            # Padding is at positions below 0, where nobody looks.
            positions = mx.maximum(layers[0].offset[:, None] + mx.arange(inputs.shape[1]), 0)
        caches = cast("list[KVCache] | None", layers)
        output = decoder.run(decoder.embed(inputs), caches, position_ids=positions)
        return self.model.logits(output.last_hidden_state)

    @property
    def layers(self) -> list[HeliumDecoderLayer]:
        """The decoder's layers."""
        return self.model.model.layers


class MlxLmTokenizer:
    """Our tokenizer with what mlx-lm asks of a Hugging Face one, whose defaults it has.

    What is not here is `HeliumTokenizer`'s own, also where it is set; a `chat_template` may be set too.
    """

    # mlx-lm takes any other than this very function for a chat template of the tokenizer's own.
    apply_chat_template = PreTrainedTokenizerBase.apply_chat_template
    get_chat_template = PreTrainedTokenizerBase.get_chat_template

    helium: HeliumTokenizer
    chat_template: str | dict[str, str] | None
    unk_token: str | None

    def __init__(self, tokenizer: HeliumTokenizer) -> None:
        directory = tokenizer.files[0].parent
        vars(self).update(
            helium=tokenizer,
            chat_template=read_chat_template(directory),
            unk_token=declared_name(directory, "unk_token"),
        )

    def __getattr__(self, name: str) -> object:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.helium, name)

    def __setattr__(self, name: str, value: object) -> None:
        # mlx-lm's wrapper keeps the second here.
        if name in ("chat_template", "has_chat_template"):
            vars(self)[name] = value
        else:
            setattr(self.helium, name, value)

    def __len__(self) -> int:
        """Count the ids."""
        return len(self.helium)

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        add_special_tokens: bool = True,
        padding: Padding = False,
        padding_side: Side | None = None,
        truncation: "Truncation | None" = None,
        max_length: int | None = None,
        return_tensors: Framework | None = None,
        sanitize_control_tokens: bool = False,
    ) -> BatchEncoding:
        """Encode one text or several, as `HeliumTokenizer` does; what `apply_chat_template` rendered comes here.

        As in transformers, a `max_length` cuts unless `truncation` or `padding` say otherwise.
        """
        if sanitize_control_tokens:
            raise HeliumError("sanitize_control_tokens is True; this tokenizer does not have that: leave it out")
        if truncation is None:
            truncation = max_length is not None and padding is False
        encoded = self.helium(  # pyright: ignore[reportCallIssue]
            text,
            add_special_tokens=add_special_tokens,
            padding=padding,
            padding_side=padding_side,
            truncation=truncation,
            max_length=max_length,
            return_tensors="mlx" if return_tensors in ("np", "pt") else return_tensors,  # pyright: ignore[reportArgumentType]
        )
        if return_tensors not in ("np", "pt"):
            return encoded
        arrays = [np.array(array, dtype=np.int64) for array in encoded.values()]
        if return_tensors == "np":
            return BatchEncoding(*arrays)
        try:
            import torch
        except ImportError as error:
            raise HeliumError(
                f"return_tensors is 'pt', and PyTorch is not there ({error}): pip install torch"
            ) from None
        return BatchEncoding(*map(torch.from_numpy, arrays))

    def encode(self, text: str, **options: object) -> Encoded:
        """Return the ids of a text, as a list or as an array of shape (1, L); `options` are those of a call."""
        return self(text, **options).input_ids  # pyright: ignore[reportArgumentType]

    def tokenize(self, text: str, *, add_special_tokens: bool = False) -> list[str]:
        """Return the pieces of a text."""
        return self.helium.convert_ids_to_tokens(self.helium.encode(text, add_special_tokens=add_special_tokens))

    @property
    def unk_token_id(self) -> int | None:
        """The id of `unk_token`."""
        return None if self.unk_token is None else self.helium.convert_tokens_to_ids(self.unk_token)

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The special tokens by the names that chat templates have for them."""
        tokens = {name: getattr(self, name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
        return {name: token for name, token in tokens.items() if token is not None}

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Return the text of ids."""
        return self.helium.decode(ids, skip_special_tokens=skip_special_tokens)

    def batch_decode(self, sequences: Sequence[Sequence[int]], *, skip_special_tokens: bool = False) -> list[str]:
        """Return the text of each sequence of ids."""
        return self.helium.batch_decode(sequences, skip_special_tokens=skip_special_tokens)

    def get_vocab(self) -> dict[str, int]:
        """Return every piece and its id."""
        return {piece: i for i, piece in enumerate(self.helium.convert_ids_to_tokens(range(len(self))))}


class MlxLmDetokenizer:
    """Our detokenizer as mlx-lm drives one: it reads `last_segment`, the text that has come since it last looked."""

    def __init__(self, tokenizer: MlxLmTokenizer) -> None:
        self._tokenizer = tokenizer.helium
        self.reset()

    def reset(self) -> None:
        """Start over."""
        self._detokenizer: StreamingDetokenizer = self._tokenizer.detokenizer()
        self.offset, self.text, self.tokens = 0, "", list[int]()

    def add_token(self, token: int) -> None:
        """Take an id."""
        self.tokens.append(token)
        self.text += self._detokenizer.add_token(token)

    def finalize(self) -> None:
        """Let out what was held back."""
        self.text += self._detokenizer.finish()

    @property
    def last_segment(self) -> str:
        """The text since this was last read."""
        segment = self.text[self.offset :]
        self.offset = len(self.text)
        return segment


class SingleModelProvider:
    """What `mlx_lm.server.run` asks for models: one that is there already, whatever its client calls it by default.

    `cli_args` are the server's flags, with its own defaults where nothing is said.
    """

    def __init__(self, model: MlxLmModel, tokenizer: TokenizerWrapper, cli_args: Namespace) -> None:
        self.cli_args = cli_args
        self.model: MlxLmModel | None = model
        self.tokenizer: TokenizerWrapper | None = tokenizer
        self.model_key = (DEFAULT_MODEL, None, None)
        self.processor = self.draft_model = None
        self.is_batchable = True

    def load_default(self) -> None:
        """Do nothing: the model is there."""

    def load(
        self, model_path: str, adapter_path: str | None = None, draft_model_path: str | None = None
    ) -> tuple[MlxLmModel | None, TokenizerWrapper | None]:
        """Return the model; a request for any other, for adapters or for a draft model is an error."""
        others = [path for path in (adapter_path, draft_model_path) if path not in (None, DEFAULT_MODEL)]
        if model_path != DEFAULT_MODEL or others:
            raise HeliumError(f"{', '.join([model_path, *map(str, others)])}: this server has {DEFAULT_MODEL} only")
        return self.model, self.tokenizer

    def reset(self) -> None:
        """Let the model go; the server has ended."""
        self.model = self.tokenizer = None


def adapt(model: HeliumForCausalLM, tokenizer: HeliumTokenizer) -> tuple[MlxLmModel, TokenizerWrapper]:
    """Return the two as mlx-lm's `load` returns them; the weights are shared, not copied."""
    wrapper = TokenizerWrapper(
        MlxLmTokenizer(tokenizer),
        detokenizer_class=MlxLmDetokenizer,  # pyright: ignore[reportArgumentType]
        eos_token_ids=tokenizer.eos_token_ids,
    )
    return MlxLmModel(model), wrapper


def model_provider(model: HeliumForCausalLM, tokenizer: HeliumTokenizer, **flags: object) -> SingleModelProvider:
    """Return what `mlx_lm.server.run(host, port, ...)` takes. `flags` are its command line's (`max_tokens=100`)."""
    unknown = sorted(set(flags) - set(SERVER_FLAGS))
    if unknown:
        raise HeliumError(f"{unknown[0]} is not a flag of mlx_lm.server that applies here: {', '.join(SERVER_FLAGS)}")
    return SingleModelProvider(*adapt(model, tokenizer), Namespace(**_FIXED_FLAGS, **(SERVER_FLAGS | flags)))
