"""Generates for a long time and watches memory: `python examples/soak.py --tokens 20000`.

Either one text after another, each up to the end of the model's context (or `--request-tokens`), as a server does, or,
with `--max-kv-size`, one text in a cache that rotates. After every request, or every `--every` tokens, it prints what
MLX holds (active), what it keeps for reuse (cache), the resident memory of the process, and the number of live arrays.

Exit status 1 if any of them grows: if its largest value in the last third of the samples is above its largest in the
middle third by more than `SLACK` says. The first third warms up.
"""

import argparse
import gc
import sys
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import mlx.core as mx

from helium_mlx import HeliumError, load, stream_generate
from helium_mlx.process import peak_resident_memory
from helium_mlx.terminal import run_command

# quantity -> (share, amount) by which it may be larger in the end. A Python process moves by a few megabytes.
SLACK = {"active": (0.01, 100_000), "cache": (0.05, 4_000_000), "resident": (0.05, 8_000_000), "arrays": (0.0, 8)}


@dataclass(frozen=True)
class Sample:
    """Bytes held by MLX, kept by it for reuse, resident; and how many arrays are alive in Python."""

    active: int
    cache: int
    resident: int
    arrays: int


def take_sample() -> Sample:
    """Return what is held now, garbage collected."""
    gc.collect()
    mx.synchronize()
    arrays = sum(type(thing) is mx.array for thing in gc.get_objects())
    return Sample(mx.get_active_memory(), mx.get_cache_memory(), resident_memory(), arrays)


def resident_memory() -> int:
    """Return the bytes that the process has in RAM; where the system does not say (macOS), the most it has had."""
    status = Path("/proc/self/statm")
    if not status.exists():
        return peak_resident_memory()
    import resource

    return int(status.read_text().split()[1]) * resource.getpagesize()


def growing(samples: Sequence[Sample], slack: Mapping[str, tuple[float, int]] = SLACK) -> list[str]:
    """Return the quantities that grow: larger in the last third of `samples` than in the middle one, by the slack."""
    third = len(samples) // 3
    found = []
    for field in fields(Sample):
        share, amount = slack[field.name]
        middle, last = (
            max(getattr(sample, field.name) for sample in part) for part in (samples[third:-third], samples[-third:])
        )
        if last > middle + max(share * middle, amount):
            found.append(f"{field.name} from {middle:,} to {last:,}")
    return found


class Diary:
    """Takes a sample when told to, prints it, and judges them all in the end."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        print(" ".join(f"{name:>12}" for name in ("tokens", *(field.name for field in fields(Sample)))))

    def note(self, done: int) -> None:
        """Sample after `done` tokens."""
        self.samples.append(take_sample())
        print(" ".join(f"{number:>12,}" for number in (done, *astuple(self.samples[-1]))), flush=True)

    def judge(self, slack: Mapping[str, tuple[float, int]] = SLACK) -> None:
        """Raise HeliumError if a quantity grows, or if the samples are too few to say."""
        if len(self.samples) < 6:
            raise HeliumError(f"{len(self.samples)} samples came, and six are the least to judge by: more --tokens")
        if found := growing(self.samples, slack):
            raise HeliumError(f"memory grows: {'; '.join(found)}")


def soak(model_name: str, tokens: int, *, every: int, request_tokens: int | None, max_kv_size: int | None) -> None:
    """Generate `tokens` tokens and print a sample a line. Raises HeliumError if memory grows."""
    model, tokenizer = load(model_name)
    prompt = tokenizer.encode("Once upon a time")
    longest = model.config.max_position_embeddings - len(prompt)
    length = tokens if max_kv_size is not None else min(request_tokens or longest, longest)
    options: dict[str, Any] = {} if max_kv_size is None else {"max_kv_size": max_kv_size}
    diary, done = Diary(), 0
    while done < tokens:
        # Drawn, as a greedy text soon runs in circles.
        request = stream_generate(
            model, tokenizer, prompt, max_tokens=min(length, tokens - done), ignore_eos=True, temperature=1.0,
            seed=done, **options,
        )  # fmt: skip
        for _ in request:
            done += 1
            if max_kv_size is not None and done % every == 0:
                diary.note(done)
        if max_kv_size is None:
            diary.note(done)
    diary.judge()
    print(f"{done:,} tokens; nothing grows")


def main() -> int:
    """Run the script and return its exit status."""
    parser = argparse.ArgumentParser(description="Generate for a long time and watch memory.")
    parser.add_argument("--model", default="demo", help="directory, Hub repository or 'demo' (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=20_000, help="tokens to generate (default: %(default)s)")
    parser.add_argument("--every", type=int, default=500, help="tokens from sample to sample with --max-kv-size")
    parser.add_argument("--request-tokens", type=int, help="length of a request (default: to the context's end)")
    parser.add_argument("--max-kv-size", type=int, help="one text, in a rotating cache of this many tokens")
    options = parser.parse_args()
    return run_command(
        lambda: soak(
            options.model,
            options.tokens,
            every=options.every,
            request_tokens=options.request_tokens,
            max_kv_size=options.max_kv_size,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
