"""Hostile checkpoints: seeded mutations of a tiny one, and the worker process that tries them (`python fuzzing.py`).

A case is a number. It seeds everything about the case, so a failure is seen again with `--first N --count 1`, and with
`--only FILE` where only that file was changed.
"""

import argparse
import base64
import copy
import faulthandler
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import mlx.core as mx
import tokenizer_samples
from tiny_checkpoints import config_values, random_weights, write_tensors

from helium_mlx import convert, score, stream_generate
from helium_mlx.checkpoint.checkpoint import open_checkpoint
from helium_mlx.checkpoint.config import HeliumConfig
from helium_mlx.errors import HeliumError
from helium_mlx.model.loading import load_model
from helium_mlx.process import peak_resident_memory
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

SECONDS_PER_CASE = 120
MAX_GROWTH = 1_000_000_000
MAX_MESSAGE = 1000

ROWS = tokenizer_samples.vocabulary()
CONFIG: dict[str, object] = {
    "vocab_size": len(ROWS) + tokenizer_samples.SPARE_IDS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "architectures": ["HeliumForCausalLM"],
    "tie_word_embeddings": True,
}
BASES = ("whole", "sharded", "quantized", "kyutai")
CARD = """---
language:
- en
- fr
license: cc-by-4.0
license_link: https://example.org/terms
tags: [text, "small"]
---
# A model

- It is under the [Gemma terms of use](https://ai.google.dev/gemma/terms).
"""
OUTPUT = ["config.json", "conversion.json", "generation_config.json", "README.md"]

# JSON text that stands for itself; in a tree it is a string that begins with this mark.
RAW = "\x00raw:"
NASTY: tuple[object, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    3,
    7,
    31,
    32,
    1024,
    2**31 - 1,
    2**31,
    2**32,
    2**53 + 1,
    2**62,
    2**63,
    2**64,
    -(2**63),
    10**30,
    0.0,
    -0.5,
    0.5,
    1e-300,
    1e300,
    32.0,
    "",
    "0",
    "silu",
    "../../etc/passwd",
    "/etc/passwd",
    "a\nb\x1b[31mc\x00",
    "\u202e\u2028",
    "x" * 100_000,
    [],
    {},
    [[]],
    {"": None},
    list(range(2000)),
    [1, "2", None, {}],
    {str(i): i for i in range(2000)},
    *(RAW + text for text in ("NaN", "Infinity", "-Infinity", "1e999", "-0", "1" * 390, "1" * 100_000, "01", "1.5e5")),
    *(RAW + text for text in ("[" * 60 + "]" * 60, "[" * 50_000, '{"a":' * 50_000, '"\\ud800"', "undefined", "'a'")),
)
SIZES = (0, 1, 2, 3, 16, 31, 33, 64, 96, 1000, 10**6, 10**9, 2**31 - 1, 2**31, 2**40, -1)
CONFIG_KEYS = (
    *CONFIG,
    *("max_position_embeddings", "rope_parameters", "rope_scaling", "rope_theta", "eos_token_id", "bos_token_id"),
    *(
        "pad_token_id",
        "hidden_act",
        "num_labels",
        "id2label",
        "label2id",
        "quantization",
        "quantization_config",
        "dtype",
    ),
    *("torch_dtype", "model_type", "rms_norm_eps", "attention_bias", "mlp_bias", "auto_map", "model_file"),
    *("trust_remote_code", "initializer_range", "problem_type", "extra", "self"),
)
ROPES: tuple[dict[str, object], ...] = (
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8, "beta_fast": 32, "beta_slow": 1},
    {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "factor": 2.0},
    {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
)
ACTIVATIONS = ("gelu", "relu", "prelu", "xielu", "quick_gelu", "laplace", "relu2")


def write_bases(directory: Path) -> None:
    """Write the checkpoints that are mutated: one file; shards and `tokenizer.model`; quantized; Kyutai's layout."""
    for base in BASES:
        _write_base(directory / base, base)


def _write_base(directory: Path, base: str) -> None:
    if base == "sharded":
        tokenizer_samples.write_sentencepiece_checkpoint(directory, ROWS)
    else:
        tokenizer_samples.write_json_checkpoint(directory, ROWS)
    family = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]} if base == "quantized" else {}
    values = config_values(**CONFIG | family)
    weights = random_weights(HeliumConfig.from_dict(values))
    if base == "quantized":
        values["quantization"] = {"group_size": 32, "bits": 4, "mode": "affine"}
        weights = _quantized(weights)
    elif base == "kyutai":
        weights = _in_kyutais_layout(weights)
    names = sorted(weights)
    if base == "sharded":
        shards = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
        weight_map = {name: shard for shard, part in shards.items() for name in part}
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        shards = {"model.safetensors": names}
    for shard, part in shards.items():
        if base == "quantized":
            mx.save_safetensors(str(directory / shard), {name: weights[name] for name in part})
        else:
            write_tensors(directory / shard, {name: weights[name] for name in part})
    (directory / "README.md").write_text(CARD)
    for name, content in (
        ("config.json", values),
        ("generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "temperature": 0.7, "top_p": 0.9}),
        ("tokenizer_config.json", {"add_bos_token": True, "added_tokens_decoder": {"1": {"content": "<s>"}}}),
    ):
        (directory / name).write_text(json.dumps(content))


def _quantized(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    packed: dict[str, mx.array] = {}
    for name, tensor in weights.items():
        path = name.removesuffix(".weight")
        if tensor.ndim == 2:
            parts = mx.quantize(tensor, group_size=32, bits=4)
            packed |= {
                f"{path}.{part}": array for part, array in zip(("weight", "scales", "biases"), parts, strict=True)
            }
        else:
            packed[name] = tensor
    return packed


def _in_kyutais_layout(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """Rename and stack the tensors of the one layer."""

    def stacked(*paths: str) -> mx.array:
        return mx.concatenate([weights[f"model.layers.0.{path}.weight"] for path in paths])

    layer = "transformer.layers.0."
    return {
        "text_emb.weight": weights["model.embed_tokens.weight"],
        "out_norm.weight": weights["model.norm.weight"],
        f"{layer}norm1.weight": stacked("input_layernorm"),
        f"{layer}norm2.weight": stacked("post_attention_layernorm"),
        f"{layer}self_attn.in_proj.weight": stacked("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        f"{layer}self_attn.out_proj.weight": stacked("self_attn.o_proj"),
        f"{layer}gating.linear_in.weight": stacked("mlp.gate_proj", "mlp.up_proj"),
        f"{layer}gating.linear_out.weight": stacked("mlp.down_proj"),
    }


# --- mutations


def mutated_bytes(rng: random.Random, data: bytes) -> bytes:
    """Return data with up to four edits of its bytes."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        i, j = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        kind = rng.randrange(9)
        if kind <= 2 and data:
            at = rng.randrange(len(data) if kind else min(len(data), 200))
            data = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        elif kind == 3:
            data = data[:i]
        elif kind == 4:
            data = data[:i] + rng.randbytes(rng.choice((1, 2, 8, 100))) + data[i:]
        elif kind == 5:
            data = data[:i] + data[min(j, i + rng.choice((1, 4, 100))) :]
        elif kind == 6:
            data = data[:i] + data[i : i + 200] * rng.choice((2, 50)) + data[i:]
        elif kind == 7:
            data = (
                data[:i]
                + rng.choice((b"\0", b"\xff" * 8, b"[" * 2000, b'"', b"}", b"\\", b"\xef\xbb\xbf", b"NaN"))
                + data[i:]
            )
        else:
            data = rng.choice((b"", b"{}", b"[]", b"null", b'""', b"\x80\x04.", data * 2, rng.randbytes(50)))
    return data


def mutated_json(rng: random.Random, tree: object, keys: tuple[str, ...] = ()) -> bytes:
    """Return JSON with up to three changes of its values, names and structure; new names are taken from `keys`."""
    _change_tree(rng, tree, keys)
    text = _dumps(tree)
    if rng.random() < 0.05 and text.startswith(b"{") and len(text) > 2:
        text = text[:-1] + b"," + text[1:]  # every name twice
    return text


def _change_tree(rng: random.Random, tree: object, keys: tuple[str, ...]) -> None:
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(tree))
        if not places:
            break
        parent, key = rng.choice(places)
        kind = rng.randrange(10)
        if kind <= 3:
            parent[key] = _nasty(rng)
        elif kind == 4:
            parent[key] = _near(rng, parent[key])
        elif kind == 5:
            del parent[key]
        elif kind == 6 and isinstance(parent, dict):
            parent[rng.choice(("", "x", f"{key}x", "__metadata__", "a\nb", *keys))] = parent.pop(key)
        elif kind == 7:
            other, name = rng.choice(places)
            parent[key], other[name] = other[name], parent[key]
        elif isinstance(parent, dict):
            parent[rng.choice((*keys, "new", "\x1b[2J"))] = _nasty(rng)
        else:
            parent.extend([parent[key]] * rng.choice((1, 1000)))


Container = dict[object, object]


def _places(tree: object, depth: int = 0) -> Iterator[tuple[Container, object]]:
    if depth > 40 or not isinstance(tree, (dict, list)):
        return
    # Wide lists, as of a vocabulary, would hide everything else.
    keys = list(tree)[:40] if isinstance(tree, dict) else range(min(len(tree), 5))
    for key in keys:
        yield cast(Container, tree), key
        yield from _places(cast(Container, tree)[key], depth + 1)


def _nasty(rng: random.Random) -> object:
    return copy.deepcopy(rng.choice(NASTY))


def _near(rng: random.Random, value: object) -> object:
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, (int, float)):
        return rng.choice((value + 1, value - 1, -value, value * 2, value * 10**9, value / 2, float(value), str(value)))
    if isinstance(value, str):
        return rng.choice((value + "x", value[1:], value.upper(), [value], rng.choice(ACTIVATIONS)))
    return rng.choice(([value], str(value)))


_RAW_TEXTS = {
    json.dumps(value): value.removeprefix(RAW) for value in NASTY if isinstance(value, str) and value.startswith(RAW)
}


def _dumps(tree: object) -> bytes:
    text = json.dumps(tree)
    if json.dumps(RAW)[1:-1] in text:
        for quoted, raw in _RAW_TEXTS.items():
            text = text.replace(quoted, raw)
    return text.encode()


def mutated_config(rng: random.Random, data: bytes) -> bytes:
    """Return a config.json with other values, often such as a config may have."""
    values = json.loads(data)
    if rng.random() < 0.5:
        return mutated_json(rng, values, CONFIG_KEYS)
    for _ in range(rng.choice((1, 1, 2, 3))):
        kind = rng.randrange(6)
        if kind == 0:
            values["rope_parameters"] = {"rope_theta": 1000.0, **json.loads(json.dumps(rng.choice(ROPES)))}
            parameters = cast(Container, values["rope_parameters"])
            parameters[rng.choice(list(parameters))] = rng.choice((*NASTY, 1e12, 1e-12, 1.0000001))
        elif kind == 1:
            values["quantization"] = {
                "group_size": rng.choice((32, 64, 128, 0)),
                "bits": rng.choice((2, 4, 8, 0.5, 4.0)),
            }
            values["quantization"]["model.embed_tokens"] = rng.choice((*NASTY, {"mode": "mxfp4"}, {"bits": 8.0}))
        elif kind == 2:
            values["hidden_act"] = rng.choice(ACTIVATIONS)
        elif kind == 3:
            values["architectures"] = [rng.choice(("HeliumModel", "HeliumForTokenClassification", "Evil"))]
            values["num_labels"] = rng.choice(SIZES)
        else:
            values[rng.choice(CONFIG_KEYS)] = rng.choice(SIZES)
    return _dumps(values)


def mutated_safetensors(rng: random.Random, data: bytes) -> bytes:
    """Return a weight file with another header, other bytes, or both."""
    if rng.random() < 0.25:
        return mutated_bytes(rng, data[: 8 + int.from_bytes(data[:8], "little")]) + data[-rng.choice((1, len(data))) :]
    length = int.from_bytes(data[:8], "little")
    header, tensors = json.loads(data[8 : 8 + length]), data[8 + length :]
    entries = [entry for name, entry in header.items() if name != "__metadata__"]
    a, b = rng.choice(entries), rng.choice(entries)
    kind = rng.randrange(10)
    if kind == 0:
        a["data_offsets"], b["data_offsets"] = b["data_offsets"], a["data_offsets"]
    elif kind == 1:
        a["shape"] = rng.choice((a["shape"][::-1], [*a["shape"], 1], [1, *a["shape"]], [*a["shape"], 0], [2**31] * 3))
    elif kind == 2:
        a["dtype"] = rng.choice(("F16", "BF16", "F32", "U32", "I32", "F64", "F8_E4M3", "BOOL", "C64", "bfloat16"))
    elif kind == 3:
        a["data_offsets"] = [offset + rng.choice((-4, 4, 1, 2**40)) for offset in a["data_offsets"]]
    elif kind == 4:
        a["data_offsets"], a["shape"] = [b["data_offsets"][0]] * 2, rng.choice(([0], [2**31 - 1, 0], [0, 2**61]))
    elif kind == 5:
        tensors = rng.choice((tensors[:-1], tensors + b"\0", tensors * 2, b"", rng.randbytes(len(tensors))))
    elif kind == 6:
        header[rng.choice(("lm_head.weight", "x", "model.layers.0.x", "\n", "x" * 500))] = dict(a)
    elif kind == 7:
        header["__metadata__"] = rng.choice((None, [], "x", {"format": "pt"}, {"format": 1}, {"a": {"b": {}}}))
    text = mutated_json(rng, header) if kind >= 8 else _dumps(header)
    claimed = len(text) + (rng.choice((-1, 1, 8, 2**32, 2**63)) if rng.random() < 0.1 else 0)
    return (max(claimed, 0) % 2**64).to_bytes(8, "little") + text + tensors


def mutated_tokenizer(rng: random.Random, data: bytes) -> bytes:
    """Return a tokenizer.json with other ids, tables or steps; one time in five with any other change."""
    if rng.random() < 0.2:
        return _mutated_json_file(rng, data)
    values = json.loads(data)
    for _ in range(rng.choice((1, 1, 2))):
        rng.choice((_change_an_id, _change_a_template, _change_a_piece, _change_steps, _change_steps))(rng, values)
    return _dumps(values)


def _any_id(rng: random.Random) -> object:
    rows = len(ROWS)
    return rng.choice((0, 3, rows - 1, rows, rows + 3, rows + 5, rows + 50, 10**6, 2**31, 2**32 - 1, _nasty(rng)))


def _change_an_id(rng: random.Random, values: Container) -> None:
    """Give an added token another id or text, or add one."""
    tokens = cast("list[Container]", values["added_tokens"])
    if tokens and rng.random() < 0.5:
        rng.choice(tokens)[rng.choice(("id", "id", "content", "special", "normalized"))] = _any_id(rng)
        return
    names = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    flags: list[object] = [rng.random() < 0.3 for _ in names[1:]]
    content = rng.choice(("of", "the", "é", " ", "\n", "<new>", "<0x41>", "a" * 5000))
    tokens.append({"id": _any_id(rng), **dict(zip(names, [content, *flags], strict=True))})


def _change_a_template(rng: random.Random, values: Container) -> None:
    """Change what the post-processor puts around a text: ids, how many, which."""
    kind = rng.randrange(4)
    if kind == 0:
        ids = [_any_id(rng) for _ in range(rng.choice((0, 1, 2, 1000)))]
        values["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "x", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"x": {"id": "x", "ids": ids, "tokens": ["x"] * len(ids)}},
        }
    elif kind == 1:
        pairs = [["</s>", _any_id(rng)], ["<s>", _any_id(rng)]]
        kinds = ("BertProcessing", "RobertaProcessing")
        values["post_processor"] = {"type": rng.choice(kinds), "sep": pairs[0], "cls": pairs[1]}
    elif isinstance(values.get("post_processor"), dict):
        _change_tree(rng, values["post_processor"], ())


def _change_a_piece(rng: random.Random, values: Container) -> None:
    """Change a row of the vocabulary, take some away or add some, or name another one unknown."""
    model = cast(Container, values["model"])
    vocab = cast("list[object]", model["vocab"])
    kind, at = rng.randrange(6), rng.randrange(len(vocab))
    if kind == 0:
        vocab[at] = rng.choice((["x", float("1e308")], ["", 0.0], ["é" * 3000, -1.0], ["the", 0.0], _nasty(rng)))
    elif kind == 1:
        del vocab[at:]
    elif kind == 2:
        vocab.extend([[f"new{i}", -1.0] for i in range(rng.choice((1, 3, 5, 3000)))])
    elif kind == 3:
        rng.shuffle(vocab)
    elif kind == 4:
        model["unk_id"] = _any_id(rng)
    else:
        model[rng.choice(("byte_fallback", "type"))] = rng.choice((False, True, "BPE", "WordLevel", "WordPiece"))


def _change_steps(rng: random.Random, values: Container) -> None:
    """Put other normalizers into a tokenizer."""
    steps = [_step(rng) for _ in range(rng.choice((1, 1, 2, 5, 40)))]
    old = values.get("normalizer")
    steps += [old] if isinstance(old, dict) and rng.random() < 0.5 else []
    values["normalizer"] = steps[0] if len(steps) == 1 else {"type": "Sequence", "normalizers": steps}


def _step(rng: random.Random) -> Container:
    text = rng.choice(("", " ", "▁", "ab", "é", "x" * 100, "y" * 20_000, "\x00"))
    pattern = rng.choice(
        ({"String": rng.choice(("", " ", "a", "th"))}, {"Regex": rng.choice(("", ".", "a*", "(", "^|$"))})
    )
    plain = rng.choice(("NFC", "NFD", "NFKC", "NFKD", "Nmt", "Lowercase", "StripAccents", "ByteLevel"))
    return rng.choice((
        {"type": "Precompiled", "precompiled_charsmap": _charsmap(rng)},
        {"type": "Precompiled", "precompiled_charsmap": _charsmap(rng)},
        {"type": "Prepend", "prepend": text},
        {"type": "Replace", "pattern": pattern, "content": text},
        {"type": "Strip", "strip_left": rng.random() < 0.5, "strip_right": rng.random() < 0.5},
        {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
         "lowercase": True},
        {"type": plain},
    ))  # fmt: skip


def _charsmap(rng: random.Random) -> object:
    """Return a table of SentencePiece's: a trie of 4-byte units behind its size, and strings; right, or nearly."""
    units = [256 << 10 | 1 << 8, *[0] * 511]
    for letter in rng.sample(range(32, 123), rng.choice((1, 3, 40))):
        units[letter ^ 256 if rng.random() < 0.1 else letter] = letter | 1 << 8 | rng.choice((256, 300, 2**20)) << 10
    units[256] = units[300] = 1 << 31 | rng.choice((0, 0, 0, 1, 5, 2**30))
    if rng.random() < 0.5:
        units[rng.randrange(512)] ^= 1 << rng.randrange(32)
    strings = rng.choice((b"ab\0c\0", b"", b"\0", b"\xff\0", "é中\0".encode(), b"z" * 3000 + b"\0", b"no end"))
    table = b"".join(unit.to_bytes(4, "little") for unit in units)
    size = len(table) if rng.random() < 0.8 else rng.choice((0, 1, 3, 4, len(table) - 1, len(table) + 99, 2**32 - 1))
    data = size.to_bytes(4, "little") + table + strings
    if rng.random() < 0.15:
        data = mutated_bytes(rng, data)
    return base64.b64encode(data).decode() if rng.random() < 0.95 else rng.choice(("", "A", "*", "AAAA", None, 7))


FRONT_MATTER = (
    *("license: no", "license: [mit, [gemma]]", "license: {a: b}", "license: &x [*x]", 'license_link: "\\U00110000"'),
    *('license_name: "\\ud800"', "%YAML 1.111111111111111111", "%TAG ! tag:", "license: !!python/object:os.system x"),
    *(
        "language: " + "[" * 500,
        "- a",
        "? a",
        "a: b: c",
        "license: |\n  a\n  b",
        "language: *x",
        "<<: *x",
        "\t",
        "\x00",
    ),
    *(
        "license: 2026-01-01",
        "language: 1_0:59",
        "license: .inf",
        "language: 0x_",
        "license: 1e9999",
        "language: ~",
        "...",
    ),
    *(
        "license: " + "x" * 30_000,
        "license: mit # \u2028\x85",
        "license: '\x1b[2J'",
        "---",
        'license: "\\x"',
        "a: {b: }}",
    ),
    *(
        "a: &a [x,x]\nb: &b [*a,*a]\nlicense: [*b,*b]",
        "language:\n" + "- en\n" * 3000,
        "license: =",
        "license: !!binary x",
    ),
)


def mutated_card(rng: random.Random, data: bytes) -> bytes:
    """Return a card with other metadata, often such as YAML has rules of its own for."""
    if rng.random() < 0.3:
        return mutated_bytes(rng, data)
    lines = data.decode().split("\n")
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, kind = rng.randrange(min(9, len(lines))), rng.randrange(5)
        if kind <= 2:
            lines.insert(at, rng.choice(FRONT_MATTER))
        elif kind == 3:
            lines[at] = rng.choice(FRONT_MATTER)
        elif kind == 4:
            del lines[at]
            lines.append(rng.choice(("Gemma " * 5000 + "terms", "> Gemma licence \x1b[2J\u202e", "# x\r## y")))
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _mutated_json_file(rng: random.Random, data: bytes) -> bytes:
    return mutated_bytes(rng, data) if rng.random() < 0.3 else mutated_json(rng, json.loads(data))


# Mutated more often than other files.
FAVOURITES = ("config.json", "model.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json")

MUTATORS: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "config.json": lambda rng, data: (mutated_bytes if rng.random() < 0.15 else mutated_config)(rng, data),
    "tokenizer.json": mutated_tokenizer,
    "tokenizer.model": mutated_bytes,
    "README.md": mutated_card,
}


def mutate(rng: random.Random, directory: Path, only: str | None = None) -> str:
    """Change one file of a checkpoint, or two, or the one that is named; return what was changed."""
    if only is not None:
        path = directory / only
        path.write_bytes(MUTATORS.get(only, _mutated_json_file)(rng, path.read_bytes()))
        return only
    changed = []
    names = sorted(path.name for path in directory.iterdir())
    for name in rng.sample([*names, *FAVOURITES], 1 if rng.random() < 0.9 else 2):
        path = directory / name
        if not path.is_file() or name in changed:
            continue
        changed.append(name)
        if rng.random() < 0.04:
            _replace_by_another_kind(rng, path)
        elif path.suffix == ".safetensors":
            path.write_bytes(mutated_safetensors(rng, path.read_bytes()))
        else:
            path.write_bytes(MUTATORS.get(name, _mutated_json_file)(rng, path.read_bytes()))
    return ", ".join(changed)


def _replace_by_another_kind(rng: random.Random, path: Path) -> None:
    path.unlink()
    kind = rng.randrange(4)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.mkdir()
    elif kind == 2:
        path.symlink_to(
            rng.choice(("/dev/zero", "/dev/stdin", "/etc/passwd", path.name, "nowhere", "..", "config.json"))
        )


# --- the cases


def run_case(number: int, bases: Path, work: Path, only: str | None = None) -> str:
    """Try one case. Returns what is wrong; "" where the checkpoint was read, or refused as it should be."""
    rng = random.Random(number)
    source, result = work / "source", work / "result"
    base = bases / rng.choice([name for name in BASES if only is None or (bases / name / only).exists()])
    shutil.copytree(base, source)
    changed = mutate(rng, source, only)
    try:
        _use(rng, source, result)
    except HeliumError as error:
        problem = _problem_of(str(error).replace(str(work), ""))
    except BaseException as error:
        problem = f"{type(error).__name__}: {traceback.format_exc()[-1500:]}"
        if isinstance(error, KeyboardInterrupt):
            raise
    else:
        problem = ""
    shutil.rmtree(source)
    left = sorted(path.name for path in work.iterdir())
    if left:
        problem += f" left behind: {left}"
        shutil.rmtree(work)
        work.mkdir()
    return problem and f"case {number} ({base.name}: {changed}): {problem}"


def _problem_of(message: str) -> str:
    if not message.isprintable() or len(message) > MAX_MESSAGE:
        return f"a message of {len(message)} characters: {message[:300]!a}"
    return ""


def _use(rng: random.Random, source: Path, result: Path) -> None:
    use = rng.randrange(4)
    if use >= 2:
        quantize = rng.random() < 0.3
        convert(
            str(source),
            str(result),
            quantize=quantize,
            q_group_size=32 if quantize else None,
            dequantize=source.is_dir() and rng.random() < 0.2,
            verify=rng.random() < 0.25,
        )
        lacking = [name for name in OUTPUT if not (result / name).is_file()]
        assert not lacking, lacking
        shutil.rmtree(result)
        return
    model = load_model(source) if use == 1 else None
    if model is None:
        open_checkpoint(source, architecture=None)
    tokenizer = HeliumTokenizer.from_pretrained(source)
    ids = tokenizer.encode("the file is of  Paris é 中\n<s>")
    tokenizer.decode(ids)
    assert tokenizer.special_ids is not None
    assert tokenizer.reserved_ids is not None
    detokenizer = tokenizer.detokenizer()
    for index in ids:
        detokenizer.add_token(index)
    detokenizer.finish()
    if model is not None:
        # Every door through which ids of a text reach a model.
        list(stream_generate(model, tokenizer, "the file", max_tokens=2))
        score(model, tokenizer, "the file")


def main() -> None:
    """Run `--count` cases from `--first` on; print a line for each that fails."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bases", type=Path)
    parser.add_argument("--at", type=Path, help="a file to write the number of the case to, before each")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--only", help="the file to change, of those that have changes of their own")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as temporary:
        bases, work = options.bases or Path(temporary) / "bases", Path(temporary) / "work"
        if options.bases is None:
            write_bases(bases)
        work.mkdir()
        _limit_memory()
        at = os.open(options.at or Path(temporary) / "at", os.O_WRONLY | os.O_CREAT)
        for number in range(options.first, options.first + options.count):
            os.pwrite(at, b"%-20d" % number, 0)
            faulthandler.dump_traceback_later(SECONDS_PER_CASE, exit=True)
            before = peak_resident_memory()
            problem = run_case(number, bases, work, options.only)
            if peak_resident_memory() - before > MAX_GROWTH // 2:
                problem += f" case {number}: memory grew"
            if problem:
                print(problem, flush=True)
        faulthandler.cancel_dump_traceback_later()


def _limit_memory() -> None:
    """Let an allocation of a gigabyte fail, where the system can do that: what there is already counts."""
    if sys.platform == "linux":
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        # Threads that are yet to start take address space for their stacks.
        resource.setrlimit(resource.RLIMIT_AS, (held + 2 * MAX_GROWTH, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()
