"""Fine-tunes the demo to tell the language of a sentence: `python examples/finetune_language_id.py`.

`HeliumForSequenceClassification` on top of the demo checkpoint, six classes; the sentences are the demo generator's.
Prints accuracy on held-out sentences beside the majority baseline, saves the model, loads it again and predicts.
"""

import argparse
import random
import re
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from demo_stories import LANGUAGES, stories

from helium_mlx import HeliumForSequenceClassification, HeliumTokenizer
from helium_mlx.files.hub import DEMO_DIRECTORY

SENTENCE = re.compile(r"[^.!?\n]+[.!?]+")


@dataclass(frozen=True)
class Sentence:
    """A sentence and the number of its language in `LANGUAGES`."""

    text: str
    label: int


def sentences(count: int, *, seed: int, held_out: bool = False) -> list[Sentence]:
    """Return `count` sentences, shuffled, about as many of each language."""
    found: list[Sentence] = []
    for label, language in enumerate(LANGUAGES):
        texts: list[str] = []
        for story in stories(language, count, seed=seed, held_out=held_out):
            texts += [match.group().strip() for match in SENTENCE.finditer(story.text)]
            if len(texts) * len(LANGUAGES) >= count:
                break
        found += [Sentence(text, label) for text in texts[: -(-count // len(LANGUAGES))]]
    random.Random(seed).shuffle(found)
    return found[:count]


def batches(
    data: list[Sentence], tokenizer: HeliumTokenizer, size: int
) -> Iterator[tuple[mx.array, mx.array, mx.array]]:
    """Yield input ids and attention mask, (B, L), padded on the left, and labels (B,)."""
    for start in range(0, len(data), size):
        rows = data[start : start + size]
        encoded = tokenizer([row.text for row in rows], padding=True, return_tensors="mlx")
        ids, mask = cast(mx.array, encoded["input_ids"]), cast(mx.array, encoded["attention_mask"])
        yield ids, mask, mx.array([row.label for row in rows])


def train(
    model: HeliumForSequenceClassification, tokenizer: HeliumTokenizer, data: list[Sentence], learning_rate: float
) -> None:
    """Train the whole model on `data`, once."""
    optimizer = optim.AdamW(learning_rate=learning_rate)

    def loss_of(ids: mx.array, mask: mx.array, labels: mx.array) -> mx.array:
        loss = model(ids, attention_mask=mask, labels=labels).loss
        assert loss is not None
        return loss

    step = nn.value_and_grad(model, loss_of)
    model.train()
    for number, batch in enumerate(batches(data, tokenizer, 16), start=1):
        loss, gradients = step(*batch)
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)
        if number % 20 == 0:
            print(f"step {number}: loss {loss.item():.4f}", file=sys.stderr)
    model.eval()


def accuracy(model: HeliumForSequenceClassification, tokenizer: HeliumTokenizer, data: list[Sentence]) -> float:
    """Return the share of sentences whose language is told."""
    right = 0
    for ids, mask, labels in batches(data, tokenizer, 32):
        told = model(ids, attention_mask=mask).logits.argmax(axis=-1)
        right += cast(int, (told == labels).sum().item())
    return right / len(data)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(description="Fine-tune the demo to tell the language of a sentence.")
    parser.add_argument("--sentences", type=int, default=960, help="sentences to train on (default: %(default)s)")
    parser.add_argument("--held-out", type=int, default=300, help="sentences to measure on (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="of AdamW (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the sentences and the head (default: %(default)s)")
    parser.add_argument("--output", help="folder to save the model in (default: a temporary one)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Train, measure, save, reload, predict; return an exit status."""
    options = build_parser().parse_args(argv)
    mx.random.seed(options.seed)
    tokenizer = HeliumTokenizer.from_pretrained(DEMO_DIRECTORY)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # says that the head is new, which is the point
        model = HeliumForSequenceClassification.from_pretrained(
            "demo", dtype="float32", id2label=dict(enumerate(LANGUAGES))
        )
    held_out = sentences(options.held_out, seed=options.seed + 1, held_out=True)
    train(model, tokenizer, sentences(options.sentences, seed=options.seed), options.learning_rate)
    majority = Counter(sentence.label for sentence in held_out).most_common(1)[0][1] / len(held_out)
    print(f"held-out accuracy {accuracy(model, tokenizer, held_out):.3f} (majority baseline {majority:.3f})")

    with tempfile.TemporaryDirectory() as temporary:
        folder = options.output or temporary
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        reloaded = HeliumForSequenceClassification.from_pretrained(folder)
        for sentence in held_out[:6]:
            ids = mx.array([tokenizer.encode(sentence.text)])
            label = cast(int, reloaded(ids).logits.argmax(axis=-1).item())
            print(f"{reloaded.config.id2label[label]}  {sentence.text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
