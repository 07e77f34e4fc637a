"""Train the demo checkpoint: a tiny Helium on made-up stories, with torch and transformers, on a CPU, in minutes.

The stories come from `demo_stories.py`, fresh for every step; the tokenizer is a SentencePiece Unigram model laid out
and converted as Helium's; the model is transformers' own `HeliumForCausalLM`. The same command with a larger
`--hidden-size` and `--layers` makes a larger toy. It needs the extra `train`, and no MLX.
"""

import argparse
import io
import itertools
import json
import math
import platform
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import sentencepiece
import torch
import transformers
from demo_stories import LANGUAGES, Story, lexicons, stories
from tokenizers import Tokenizer
from transformers import HeliumConfig, HeliumForCausalLM
from transformers.convert_slow_tokenizer import HeliumConverter

BOS, EOS, PAD = 1, 2, 3
IGNORED = -100
CONTEXT = 4096
HEAD_DIM = 64
ROPE_THETA = 100_000.0
FIRST_BYTE = 106  # after the six named and the hundred reserved pieces
COPY = 0.5  # how much of what a layer attends to it adds, before training
EMOJI = re.compile("[\U0001f300-\U0001faff]")
EVALUATION_SEED = 1_000_003


@dataclass(frozen=True)
class Settings:
    """What a run depends on, besides the versions of the libraries."""

    seed: int
    steps: int
    copying_steps: int
    batch_tokens: int
    learning_rate: float
    hidden_size: int
    intermediate_size: int
    layers: int
    vocab_size: int
    autocast: bool
    threads: int


def train_tokenizer(folder: Path, settings: Settings) -> Tokenizer:
    """Train `tokenizer.model` on stories, convert it to `tokenizer.json`, and write the two small files beside them.

    A newline starts a new segment in the converted tokenizer, so every paragraph is a sentence of its own here. Emoji
    are left out, so that they stay bytes: the demo then shows a character made of several tokens.
    """
    text = (
        paragraph
        for language in LANGUAGES
        for story in stories(language, 2500, seed=settings.seed)
        for paragraph in EMOJI.sub("", story.text).split("\n")
    )
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=text,
        model_writer=model,
        model_type="unigram",
        vocab_size=settings.vocab_size,
        unk_id=0,
        bos_id=BOS,
        eos_id=EOS,
        pad_id=PAD,
        control_symbols=["<|im_start|>", "<|im_end|>", *(f"<|im_sp_{i:02}|>" for i in range(100))],
        byte_fallback=True,
        split_digits=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    HeliumConverter(str(folder / "tokenizer.model")).converted().save(str(folder / "tokenizer.json"), pretty=False)
    configuration = {
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 1000000000000000019884624838656,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    write_json(folder / "tokenizer_config.json", configuration)
    write_json(folder / "special_tokens_map.json", {})
    return load_tokenizer(folder)


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read `tokenizer.json` and switch its padding rule off."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    return tokenizer


def documents(tokenizer: Tokenizer, seed: int, *, held_out: bool = False) -> Iterator[list[int]]:
    """Yield stories without end, languages in turn, as `<s>` story `</s>`."""
    for block in itertools.count():
        made = [list(stories(language, 64, seed=seed * 1_000_000 + block, held_out=held_out)) for language in LANGUAGES]
        texts = [story.text for row in zip(*made, strict=True) for story in row]
        for encoding in tokenizer.encode_batch(texts):
            yield [*encoding.ids, EOS]


def story_batches(source: Iterator[list[int]], batch_tokens: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Yield batches of one story a row, of like lengths, padded on the right."""
    while True:
        pool = sorted(itertools.islice(source, 768), key=len)
        batches: list[list[list[int]]] = [[]]
        for ids in pool:
            if (len(batches[-1]) + 1) * len(ids) > batch_tokens:
                batches.append([])
            batches[-1].append(ids)
        for index in torch.randperm(len(batches), generator=generator).tolist():
            length = len(batches[index][-1])
            yield torch.tensor([ids + [PAD] * (length - len(ids)) for ids in batches[index]])


def window_batches(source: Iterator[list[int]], rows: int, length: int) -> Iterator[torch.Tensor]:
    """Yield batches of windows full of stories, one after another, after a single `<s>`."""
    while True:
        windows = []
        for _ in range(rows):
            window = [BOS]
            while len(window) < length:
                window += next(source)[1:]
            windows.append(window[:length])
        yield torch.tensor(windows)


def copying_batches(settings: Settings, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Yield rows of random pieces that only repeat: a block again and again, or a handful of pieces in any order."""
    length = 128
    first = FIRST_BYTE + 256

    def below(high: int, count: int) -> torch.Tensor:
        return torch.randint(high, (count,), generator=generator)

    while True:
        rows = []
        for row in range(settings.batch_tokens // length):
            size = 2 + int(below(30, 1))
            order = torch.arange(length) % size if row % 2 else below(2 + size // 6, length)
            rows.append((first + below(settings.vocab_size - first, size))[order])
        yield torch.cat([torch.full((len(rows), 1), BOS), torch.stack(rows)], dim=1)


def schedule(settings: Settings, tokenizer: Tokenizer) -> Iterator[torch.Tensor]:
    """Yield the batch of every step: the copying exercise, then single stories, as the model is used.

    After a quarter of the run each fifth step is windows of 512 to 2,048 tokens and, in its second half, every other
    one of these a whole context, so that all 4,096 positions are trained.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    source = documents(tokenizer, settings.seed)
    singles = story_batches(source, settings.batch_tokens, generator)
    windows = {
        length: window_batches(source, max(1, settings.batch_tokens // length), length)
        for length in (512, 1024, 2048, CONTEXT)
    }
    lengths = itertools.cycle((512, 1024, 512, 2048))
    copying = copying_batches(settings, generator)
    for step in range(settings.steps):
        if step < settings.copying_steps or (step % 8 == 0 and step < settings.steps // 4):
            yield next(copying)
        elif step % 5 or step < settings.steps // 4:
            yield next(singles)
        elif step % 10 and step > settings.steps // 2:
            yield next(windows[CONTEXT])
        else:
            yield next(windows[next(lengths)])


def build_model(settings: Settings) -> HeliumForCausalLM:
    """Make the untrained model, begun so that its attention copies.

    Values and outputs of an attention start as an orthogonal matrix and its scaled transpose, so a layer adds the mean
    of what it attends to; the feed-forward layers start silent; the output matrix starts as a small copy of the input
    embeddings (they are not tied, and part at once). What is left to learn is where to look. From transformers'
    own initialisation, six million tokens were not enough for a name to be taken from the story.
    """
    heads = settings.hidden_size // HEAD_DIM
    config = HeliumConfig(
        vocab_size=settings.vocab_size,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=HEAD_DIM,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-8,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=False,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        initializer_range=settings.hidden_size**-0.5,
    )
    model = HeliumForCausalLM(config)
    weights = dict(model.named_parameters())
    with torch.no_grad():
        embeddings = weights["model.embed_tokens.weight"]
        weights["lm_head.weight"].copy_(embeddings)
        embeddings /= embeddings.std()
        for index in range(settings.layers):
            values = weights[f"model.layers.{index}.self_attn.v_proj.weight"]
            torch.nn.init.orthogonal_(values)
            weights[f"model.layers.{index}.self_attn.o_proj.weight"].copy_(values.T * COPY)
            weights[f"model.layers.{index}.mlp.down_proj.weight"].zero_()
    return model


def learning_rate(step: int, settings: Settings) -> float:
    """Warm up over 3% of the steps, then follow a cosine to 2% of the peak."""
    warmup = max(1, settings.steps * 3 // 100)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, settings.steps - warmup)
    return settings.learning_rate * (0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2)


def next_token_loss(model: HeliumForCausalLM, ids: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Return the cross entropy of every token but the first; padding, which only follows `</s>`, is left out."""
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    targets = ids[:, 1:].masked_fill(ids[:, 1:] == PAD, IGNORED)
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction=reduction
    )


def build_optimizers(model: HeliumForCausalLM) -> list[torch.optim.Optimizer]:
    """Return Muon, its steps scaled to the size of AdamW's, for the matrices of the layers, and AdamW for the rest."""
    layers = {name: p for name, p in model.named_parameters() if name.startswith("model.layers.") and p.ndim == 2}
    rest = [p for name, p in model.named_parameters() if name not in layers]
    return [
        torch.optim.Muon(list(layers.values()), weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, betas=(0.9, 0.95), weight_decay=0.01, fused=True),
    ]


def train(model: HeliumForCausalLM, tokenizer: Tokenizer, settings: Settings) -> int:
    """Train in place, with progress on standard error; return the number of tokens seen."""
    optimizers = build_optimizers(model)
    seen, recent, start = 0, 0.0, time.perf_counter()
    model.train()
    for step, ids in enumerate(schedule(settings, tokenizer)):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, settings)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=settings.autocast):
            loss = next_token_loss(model, ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        seen += int((ids[:, 1:] != PAD).sum())
        recent += float(loss.detach())
        if step % 50 == 49:
            seconds = time.perf_counter() - start
            print(
                f"step {step + 1}  loss {recent / 50:.4f}  {seen / seconds:.0f} tokens/s", file=sys.stderr, flush=True
            )
            recent = 0.0
    return seen


@torch.inference_mode()
def held_out_loss(model: HeliumForCausalLM, tokenizer: Tokenizer, language: str, count: int) -> dict[str, float]:
    """Return the mean loss of held-out stories in nats a token and in bits a byte of UTF-8."""
    nats, tokens, size = 0.0, 0, 0
    for story in stories(language, count, seed=EVALUATION_SEED, held_out=True):
        ids = torch.tensor([[*tokenizer.encode(story.text).ids, EOS]])
        nats += float(next_token_loss(model, ids, "sum"))
        tokens += ids.shape[1] - 1
        size += len(story.text.encode())
    return {"nats_per_token": round(nats / tokens, 4), "bits_per_byte": round(nats / math.log(2) / size, 4)}


@torch.inference_mode()
def context_loss(model: HeliumForCausalLM, tokenizer: Tokenizer, count: int) -> dict[str, float]:
    """Return the mean loss, in nats a token, of the parts of whole contexts of held-out stories."""
    source = documents(tokenizer, EVALUATION_SEED, held_out=True)
    ids = torch.cat(list(itertools.islice(window_batches(source, 1, CONTEXT), count)))
    logits = torch.cat([model(input_ids=row[None, :-1], use_cache=False).logits for row in ids])
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    edges = (0, 512, 1024, 2048, 3072, CONTEXT - 1)
    return {f"{a}-{b}": round(float(losses[:, a:b].mean()), 4) for a, b in itertools.pairwise(edges)}


@torch.inference_mode()
def continue_text(model: HeliumForCausalLM, tokenizer: Tokenizer, prompt: str, max_tokens: int) -> tuple[str, bool]:
    """Return the greedy continuation of a text, and whether it ended by itself."""
    ids = tokenizer.encode(prompt).ids
    prompt_length = len(ids)
    cache, following = None, ids
    while len(ids) < prompt_length + max_tokens and ids[-1] != EOS:
        output = model(input_ids=torch.tensor([following]), past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        following = [int(output.logits[0, -1].argmax())]
        ids += following
    return tokenizer.decode(ids)[len(tokenizer.decode(ids[:prompt_length])) :], ids[-1] == EOS


def opening_of(story: Story) -> str:
    """Cut a story after the last first mention of a person or object: after that, all of them are known."""
    known: set[str] = set()
    end = 0
    for span in story.spans:
        word = story.text[span.start : span.end]
        if span.kind != "place" and word not in known:
            known.add(word)
            end = span.end
    return story.text[:end]


def stories_of_three(language: str, count: int) -> list[Story]:
    """Return held-out stories in which all three people occur, so that a continuation has no call for a fourth."""
    told = stories(language, 10 * count, seed=EVALUATION_SEED + 1, held_out=True)
    people = ((story, {story.text[s.start : s.end] for s in story.spans if s.kind == "person"}) for story in told)
    return list(itertools.islice((story for story, names in people if len(names) == 3), count))


def keeping(model: HeliumForCausalLM, tokenizer: Tokenizer, language: str, count: int) -> dict[str, float]:
    """Continue held-out openings greedily and count what is kept of them.

    `names` and `objects` are the shares of such words in the continuations that stand in the prompts, `refrains` the
    share of stories whose refrain comes back, of those where it should, and `ended` the share that ends with `</s>`.
    """
    lexicon = lexicons()[language]
    names = {name for group in lexicon["people"].values() for name in group.split()}
    objects = {entry.split(" ")[1] for entry in lexicon["objects"]}
    mentioned, kept, ended = {"names": 0, "objects": 0, "refrains": 0}, {"names": 0, "objects": 0, "refrains": 0}, 0
    for story in stories_of_three(language, count):
        prompt = opening_of(story)
        text, has_ended = continue_text(model, tokenizer, prompt, 256)
        ended += has_ended
        known = set(re.findall(r"[\w-]+", prompt))
        for kind, words in (("names", names), ("objects", objects)):
            found = [word for word in re.findall(r"[\w-]+", text) if word in words]
            mentioned[kind] += len(found)
            kept[kind] += sum(word in known for word in found)
        if story.refrain in prompt and story.refrain in story.text[len(prompt) :]:
            mentioned["refrains"] += 1
            kept["refrains"] += story.refrain in text
    shares = {kind: round(kept[kind] / max(1, mentioned[kind]), 4) for kind in mentioned}
    return {**shares, "ended": round(ended / count, 4)}


def evaluate(folder: Path, count: int) -> dict[str, object]:
    """Measure the checkpoint as it was saved (the bfloat16 weights), by language."""
    tokenizer = load_tokenizer(folder)
    model = HeliumForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return {
        "held_out_loss": {language: held_out_loss(model, tokenizer, language, count) for language in LANGUAGES},
        "context_loss": context_loss(model, tokenizer, 8),
        "kept": {language: keeping(model, tokenizer, language, count // 4) for language in LANGUAGES},
    }


def write_json(path: Path, content: object) -> None:
    """Write readable JSON."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def run(output: Path, settings: Settings, *, evaluation_stories: int) -> None:
    """Train the tokenizer and the model, save both, evaluate what was saved, and record it in `training.json`."""
    torch.manual_seed(settings.seed)
    torch.set_num_threads(settings.threads)
    tokenizer = train_tokenizer(output, settings)
    settings = replace(settings, vocab_size=tokenizer.get_vocab_size())
    model = build_model(settings)
    start = time.perf_counter()
    tokens = train(model, tokenizer, settings)
    seconds = time.perf_counter() - start
    model.bfloat16().save_pretrained(output)
    record = {
        "settings": asdict(settings),
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": tokens,
        "seconds": round(seconds, 1),
        "stories": {"training_seed": settings.seed, "evaluation_seed": EVALUATION_SEED, "languages": LANGUAGES},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "sentencepiece": sentencepiece.__version__,
        },
        **evaluate(output, evaluation_stories),
    }
    write_json(output / "training.json", record)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script."""
    parser = argparse.ArgumentParser(description="Train a tiny Helium on made-up stories in six languages.")
    parser.add_argument("--output", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--seed", type=int, default=1, help="seed of the stories and the weights")
    parser.add_argument("--steps", type=int, default=3000, help="optimizer steps")
    parser.add_argument("--copying-steps", type=int, default=150, help="how many of the first steps only teach copying")
    parser.add_argument("--batch-tokens", type=int, default=2048, help="tokens a step, padding included")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--hidden-size", type=int, default=128, help="width; a multiple of 64")
    parser.add_argument(
        "--intermediate-size", type=int, help="width of the feed-forward layers (three times the width)"
    )
    parser.add_argument("--layers", type=int, default=6, help="decoder layers")
    parser.add_argument("--vocab-size", type=int, default=2048, help="pieces of the tokenizer")
    parser.add_argument("--autocast", action="store_true", help="multiply in bfloat16; the weights stay float32")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads; one is faster where others compute too")
    parser.add_argument("--evaluation-stories", type=int, default=64, help="held-out stories a language to measure on")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the script."""
    args = vars(build_parser().parse_args(argv))
    output, evaluation_stories = args.pop("output"), args.pop("evaluation_stories")
    args["intermediate_size"] = args["intermediate_size"] or 3 * args["hidden_size"]
    run(output, Settings(**args), evaluation_stories=evaluation_stories)
    return 0


if __name__ == "__main__":
    sys.exit(main())
