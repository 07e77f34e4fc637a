"""Write what `helium_mlx` makes of texts, ids and prompts, for the program in C++ to make the same of them.

`test_python_cases.cpp` reads it. The checkpoint must be the one that the bundle was exported from, in its precision.
"""

import argparse
import json
import random
from pathlib import Path

import helium_mlx
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

TEXTS = (
    "",
    " ",
    "  ",
    "\n",
    "\n\n",
    "a\nb",
    "a\n\n\nb",
    "the\r\nfile",
    " Paris",
    "Paris ",
    "\tthe",
    "<s>",
    "<s>x",
    "x<s>",
    "<s> a</s>",
    "é<s>é",
    "ⓐ<s>",
    "x <s> y",
    "<s><s>a",
    "<unk>",
    "a<unk>b",
    "<0x41>",
    "<0x0A>",
    "<|im_start|>user",
    "<|im_sp_05|>",
    "<<s>>",
    "▁a▁",
    "a\u00a0b",
    "e\u0301",
    "👩\u200d🚀",
    "\u0000",
    "中文",
    "\ufffd",
    "L'été, Noël et l'œuvre.",
)
PARTS = (
    " ",
    "  ",
    "\n",
    "<s>",
    "</s>",
    "<unk>",
    "<0x41>",
    "<0xC3>",
    "<pad>",
    "<|im_end|>",
    "<",
    ">",
    "▁",
    "\u00a0",
    "\u200d",
    "\u0301",
    "é",
    "ß",
    "ⓐ",
    "_",
    "7",
    "-",
    "中",
    "😀",
    "👩",
    "Once",
    "upon",
    "a",
    "time",
    "the",
    "La",
    "fois",
    "était",
    "\t",
    "\u0000",
)
PROMPTS = ("Once upon a time", "Il était une fois", "Es war einmal", "C'era una volta", "Havia um menino\nE uma menina")
WORDS = ("the", "boy", "and", "a", "girl", "lived", "near", "harbour", "with", "their", "dog", "who", "was", "called")
# How long the prompts are that take several calls, larger caches, and in the end the whole context.
PROMPT_WORDS = (40, 300, 700, 2000)


def random_texts(random_: random.Random, count: int) -> list[str]:
    """Return texts of parts that tokenizers disagree about."""
    return ["".join(random_.choices(PARTS, k=random_.randint(1, 12))) for _ in range(count)]


def random_ids(random_: random.Random, tokenizer: HeliumTokenizer, count: int) -> list[list[int]]:
    """Return runs of ids, half of them of the first ones: bytes and special tokens."""
    return [
        [random_.randrange(370 if random_.random() < 0.5 else len(tokenizer)) for _ in range(random_.randint(1, 20))]
        for _ in range(count)
    ]


def pieces_of(tokenizer: HeliumTokenizer, ids: list[int]) -> list[str]:
    """Return what each id makes certain, and what is left at the end."""
    detokenizer = tokenizer.detokenizer()
    return [*(detokenizer.add_token(token) for token in ids), detokenizer.finish()]


def requests(random_: random.Random) -> list[dict[str, object]]:
    """Return prompts with options, named as in `stream_generate`."""
    stories = [" ".join(random_.choices(WORDS, k=words)) for words in PROMPT_WORDS]
    sampled: list[dict[str, object]] = [
        {"temperature": 1.0},
        {"temperature": 0.7},
        {"temperature": 1.2, "top_p": 0.8},
        {"temperature": 1.0, "top_k": 5},
        {"temperature": 1.0, "min_p": 0.1},
        {"temperature": 0.9, "top_p": 0.9, "top_k": 40, "min_p": 0.01},
    ]
    return [
        *({"prompt": prompt, "max_tokens": 24} for prompt in (*PROMPTS, *stories)),
        *({"prompt": prompt, "max_tokens": 24, "stop": ["called", "."]} for prompt in PROMPTS),
        {"prompt": "<s><s>Once upon a time", "max_tokens": 4},
        *(
            {"prompt": prompt, "max_tokens": 24, "seed": seed, **options}
            for seed, prompt in enumerate(PROMPTS[:3])
            for options in sampled
        ),
    ]


def main() -> None:
    """Write the cases to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="the checkpoint that the bundle was exported from")
    parser.add_argument("--output", required=True, type=Path, help="the file to write")
    parser.add_argument("--texts", type=int, default=500, help="how many random texts and runs of ids")
    arguments = parser.parse_args()
    random_ = random.Random(1)
    model, tokenizer = helium_mlx.load(arguments.checkpoint)
    completions: list[dict[str, object]] = []
    for request in requests(random_):
        chunks = list(helium_mlx.stream_generate(model, tokenizer, **request))  # pyright: ignore[reportArgumentType]
        reached = {"tokens": [chunk.token for chunk in chunks], "chunks": [chunk.text for chunk in chunks]}
        completions.append({**request, **reached, "finish_reason": chunks[-1].finish_reason})
    cases = {
        "encodings": [
            {"text": text, "ids": tokenizer.encode(text)} for text in (*TEXTS, *random_texts(random_, arguments.texts))
        ],
        "decodings": [
            {"ids": ids, "pieces": pieces_of(tokenizer, ids)} for ids in random_ids(random_, tokenizer, arguments.texts)
        ],
        "completions": completions,
    }
    arguments.output.write_text(json.dumps(cases, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
