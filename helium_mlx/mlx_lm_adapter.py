"""Lets mlx-lm's own tools take our model: `batch_generate`, its LoRA trainer, its server.

    model, tokenizer = adapt(*helium_mlx.load("demo"))
    mlx_lm.batch_generate(model, tokenizer, [tokenizer.encode("Bonjour")])
    mlx_lm.server.run("127.0.0.1", 8080, model_provider(*helium_mlx.load("demo")))

mlx-lm is not a dependency of this package: `pip install mlx-lm`. It brings transformers along, so nothing else imports
this module. The adapted model shares its weights with ours: LoRA layers that mlx-lm puts into it are in both.

LoRA sees the merged projections (`self_attn.qkv_proj`, `mlp.gate_up_proj`), so its adapters fit this adapter only, and
not mlx-lm's own Helium. Helium, a base model, has no chat template; one may be set (`tokenizer.chat_template = …`),
which mlx-lm's prompt-and-completion data need. Without one, the server's chat requests get mlx-lm's plain rendering.
"""

from argparse import Namespace
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Literal, Protocol, cast

import mlx.core as mx
import mlx.nn as nn

from helium_mlx.errors import HeliumError
from helium_mlx.kv_cache.cache import KVCache
from helium_mlx.kv_cache.masks import Mask
from helium_mlx.model.helium import HeliumDecoderLayer, HeliumForCausalLM
from helium_mlx.tokenizer.detokenizer import StreamingDetokenizer
from helium_mlx.tokenizer.tokenizer import BatchEncoding, HeliumTokenizer

try:
    from mlx_lm.models.base import scaled_dot_product_attention
    from mlx_lm.tokenizer_utils import TokenizerWrapper
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase
except ImportError as error:
    raise HeliumError(f"mlx-lm is not there ({error}): pip install mlx-lm") from None


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
    """Our tokenizer with what mlx-lm asks of a Hugging Face one. A `chat_template` may be set, as on one of those."""

    chat_template: str | None = None
    # mlx-lm takes any other than this very function for a chat template of the tokenizer's own.
    apply_chat_template = PreTrainedTokenizerBase.apply_chat_template
    get_chat_template = PreTrainedTokenizerBase.get_chat_template

    def __init__(self, tokenizer: HeliumTokenizer) -> None:
        self.helium = tokenizer
        self.eos_token_id, self.bos_token_id = tokenizer.eos_token_id, tokenizer.bos_token_id
        self.pad_token_id = tokenizer.pad_token_id
        self.vocab_size = tokenizer.vocab_size
        self.bos_token = tokenizer.convert_ids_to_tokens(tokenizer.bos_token_id)
        self.eos_token = tokenizer.convert_ids_to_tokens(tokenizer.eos_token_id)

    def __len__(self) -> int:
        """Count the ids."""
        return len(self.helium)

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        add_special_tokens: bool = True,
        padding: bool = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: Literal["mlx"] | None = None,
        sanitize_control_tokens: bool = False,
    ) -> BatchEncoding:
        """Encode one text or several, as `HeliumTokenizer` does; what `apply_chat_template` rendered comes here."""
        if sanitize_control_tokens:
            raise HeliumError("sanitize_control_tokens is True; this tokenizer does not have that: leave it out")
        return self.helium(
            text,
            add_special_tokens=add_special_tokens,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            return_tensors=return_tensors,
        )

    def encode(
        self, text: str, *, add_special_tokens: bool = True, return_tensors: Literal["mlx"] | None = None
    ) -> list[int] | mx.array:
        """Return the ids of a text, as a list or as an array of shape (1, L)."""
        encoded = self(text, add_special_tokens=add_special_tokens, return_tensors=return_tensors)
        return cast("list[int] | mx.array", encoded.input_ids)

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The special tokens by the names that chat templates have for them."""
        ids = {"bos_token": self.bos_token_id, "eos_token": self.eos_token_id, "pad_token": self.pad_token_id}
        return {name: self.helium.convert_ids_to_tokens(i) for name, i in ids.items() if i is not None}

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of ids."""
        return self.helium.decode(ids, skip_special_tokens=skip_special_tokens)

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """Return the piece of each id."""
        return self.helium.convert_ids_to_tokens(ids)

    def convert_tokens_to_ids(self, token: str) -> int:
        """Return the id of a piece."""
        return self.helium.convert_tokens_to_ids(token)

    def get_vocab(self) -> dict[str, int]:
        """Return every piece and its id."""
        return {piece: index for index, piece in enumerate(self.convert_ids_to_tokens(range(len(self))))}


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
