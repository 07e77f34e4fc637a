"""Fine-tunes the demo to tag people, places and objects: `python examples/finetune_tagging.py`.

`HeliumForTokenClassification` on top of the demo checkpoint; a token that shares a character with a mention has the
mention's tag. Prints accuracy on held-out stories beside that of tagging nothing, and F1 by tag; saves the model, loads
it again and predicts. A decoder sees only what stands before a token, so a tag is a guess from the left.
"""

import argparse
import random
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from demo_stories import LANGUAGES, Span, stories

from helium_mlx import HeliumForTokenClassification, HeliumTokenizer
from helium_mlx.files.hub import DEMO_DIRECTORY
from helium_mlx.model.losses import IGNORE_INDEX

TAGS = ("none", "person", "place", "object")


@dataclass(frozen=True)
class Tagged:
    """A paragraph as token ids, each with the number of its tag in `TAGS`; the BOS has none."""

    ids: list[int]
    tags: list[int]


def paragraphs(text: str, spans: tuple[Span, ...]) -> Iterator[tuple[str, list[Span]]]:
    """Cut a story at its newlines, after which the tokenizer would add a space; mentions move along."""
    start = 0
    for line in text.splitlines(keepends=True):
        inside = [span for span in spans if start <= span.start < start + len(line)]
        yield line.rstrip("\n"), [Span(s.start - start, s.end - start, s.kind) for s in inside]
        start += len(line)


def tag_tokens(tokenizer: HeliumTokenizer, text: str, spans: list[Span]) -> Tagged:
    """Return the ids of a text with their tags: what each token adds to the decoded text says where it stands."""
    ids = tokenizer.encode(text)
    detokenizer, end, tags = tokenizer.detokenizer(), 0, [IGNORE_INDEX]
    for token in ids[1:]:
        start, end = end, end + len(detokenizer.add_token(token))
        kinds = [span.kind for span in spans if span.start < end and start < span.end]
        tags.append(TAGS.index(kinds[0]) if kinds else 0)
    return Tagged(ids, tags)


def examples(tokenizer: HeliumTokenizer, count: int, *, seed: int, held_out: bool = False) -> list[Tagged]:
    """Return `count` tagged paragraphs, shuffled, about as many of each language."""
    found: list[Tagged] = []
    share = -(-count // len(LANGUAGES))
    for language in LANGUAGES:
        of_language: list[Tagged] = []
        for story in stories(language, share, seed=seed, held_out=held_out):
            of_language += [tag_tokens(tokenizer, text, spans) for text, spans in paragraphs(story.text, story.spans)]
        found += of_language[:share]
    random.Random(seed).shuffle(found)
    return found[:count]


def batches(data: list[Tagged], pad: int, size: int) -> Iterator[tuple[mx.array, mx.array, mx.array]]:
    """Yield input ids, attention mask and labels, all (B, L), padded on the right."""
    for start in range(0, len(data), size):
        rows = data[start : start + size]
        length = max(len(row.ids) for row in rows)
        gaps = [length - len(row.ids) for row in rows]
        yield (
            mx.array([row.ids + [pad] * gap for row, gap in zip(rows, gaps, strict=True)]),
            mx.array([[1] * len(row.ids) + [0] * gap for row, gap in zip(rows, gaps, strict=True)]),
            mx.array([row.tags + [IGNORE_INDEX] * gap for row, gap in zip(rows, gaps, strict=True)]),
        )


def train(model: HeliumForTokenClassification, data: list[Tagged], pad: int, learning_rate: float) -> None:
    """Train the whole model on `data`, once."""
    optimizer = optim.AdamW(learning_rate=learning_rate)

    def loss_of(ids: mx.array, mask: mx.array, labels: mx.array) -> mx.array:
        loss = model(ids, attention_mask=mask, labels=labels).loss
        assert loss is not None
        return loss

    step = nn.value_and_grad(model, loss_of)
    model.train()
    for number, batch in enumerate(batches(data, pad, 16), start=1):
        loss, gradients = step(*batch)
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)
        if number % 10 == 0:
            print(f"step {number}: loss {loss.item():.4f}", file=sys.stderr)
    model.eval()


def predictions(model: HeliumForTokenClassification, data: list[Tagged], pad: int) -> list[tuple[int, int]]:
    """Return (tag, predicted tag) of every token."""
    pairs: list[tuple[int, int]] = []
    for ids, mask, labels in batches(data, pad, 16):
        told = model(ids, attention_mask=mask).logits.argmax(axis=-1)
        both = zip(
            cast(list[int], labels.reshape(-1).tolist()), cast(list[int], told.reshape(-1).tolist()), strict=True
        )
        pairs += [pair for pair in both if pair[0] != IGNORE_INDEX]
    return pairs


def f1(pairs: list[tuple[int, int]], tag: int) -> float:
    """Return the harmonic mean of precision and recall of one tag."""
    both = sum(pair == (tag, tag) for pair in pairs)
    named = sum(predicted == tag for _, predicted in pairs)
    there = sum(actual == tag for actual, _ in pairs)
    return 2 * both / max(1, named + there)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(description="Fine-tune the demo to tag people, places and objects.")
    parser.add_argument("--paragraphs", type=int, default=360, help="paragraphs to train on (default: %(default)s)")
    parser.add_argument("--held-out", type=int, default=90, help="paragraphs to measure on (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of AdamW (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the stories and the head (default: %(default)s)")
    parser.add_argument("--output", help="folder to save the model in (default: a temporary one)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Train, measure, save, reload, predict; return an exit status."""
    options = build_parser().parse_args(argv)
    mx.random.seed(options.seed)
    tokenizer = HeliumTokenizer.from_pretrained(DEMO_DIRECTORY)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # says that the head is new, which is the point
        model = HeliumForTokenClassification.from_pretrained("demo", dtype="float32", id2label=dict(enumerate(TAGS)))
    pad = cast(int, tokenizer.pad_token_id)
    held_out = examples(tokenizer, options.held_out, seed=options.seed + 1, held_out=True)
    train(model, examples(tokenizer, options.paragraphs, seed=options.seed), pad, options.learning_rate)
    pairs = predictions(model, held_out, pad)
    right, nothing = (sum(hits) / len(pairs) for hits in ([a == b for a, b in pairs], [a == 0 for a, _ in pairs]))
    print(f"held-out accuracy {right:.3f} (tagging nothing {nothing:.3f})")
    print(", ".join(f"F1 of {tag} {f1(pairs, number):.3f}" for number, tag in enumerate(TAGS) if number))

    with tempfile.TemporaryDirectory() as temporary:
        folder = options.output or temporary
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        reloaded = HeliumForTokenClassification.from_pretrained(folder)
        for example in held_out[:3]:
            tags = cast(list[int], reloaded(mx.array([example.ids])).logits[0].argmax(axis=-1).tolist())
            pieces = tokenizer.convert_ids_to_tokens(example.ids)
            marked = [
                f"[{piece.strip('▁')}:{TAGS[tag]}]" if tag else piece for piece, tag in zip(pieces, tags, strict=True)
            ]
            print("".join(marked[1:]).replace("▁", " ").strip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
