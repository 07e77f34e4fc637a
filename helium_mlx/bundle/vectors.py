"""What a bundle's `vectors.json` holds: prompts, and what the model in Python makes of them.

The model's numbers are proven against transformers elsewhere (docs/correctness.md); these here let any host of a bundle
prove itself against the model: token ids, greedy ids, the pieces of text that each token gives, and a few logits. What
a model seldom says, such as an emoji byte by byte, is among the streams: ids and the pieces that they give.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import mlx.core as mx

from helium_mlx.backend import dtype_name
from helium_mlx.bundle.runner import BundleRunner
from helium_mlx.errors import BundleError
from helium_mlx.generation.sampling import Sampler, SamplingOptions
from helium_mlx.generation.streaming import Decoding, prefill
from helium_mlx.kv_cache.make import make_cache
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.model.sound_logits import unsound
from helium_mlx.option_values import OnProgress
from helium_mlx.tokenizer.detokenizer import StreamingDetokenizer
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

GREEDY_TOKENS = 24
BEST_LOGITS = 5

# The error that a logit may have, over the largest of its position. Another machine sums in another order.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
SHORT_PROMPTS = (
    "Once upon a time",
    "Il était une fois une fille qui s'appelait Zoé 👩‍🚀",
    "Um drei Uhr trafen sich\nAnna und Felix",
    "Ogni giorno,\u00a0dopo pranzo, ",
    "No dia 13 de março 🎂🎂, Rafael\n\n",
    "Era una noche tranquila\u00a0— ¡y Lucía!   ",
    "",
)
PARAGRAPH = (
    "Once upon a time there was a boy called Arthur who lived near the harbour. Il était une fois une fille qui "
    "s'appelait Zoé. Um drei Uhr trafen sich Anna und Felix im Hafen.\n"
)

# Bytes that are not UTF-8, alone and within a character, in the pieces' names.
BROKEN_BYTES = (("<0xC3>", "<0x28>"), ("<0xF0>", "<0x9F>", "<0x98>"), ("<0xE4>", "<0xB8>", "<0xAD>", "<0xFF>"))

# Lengths in tokens of the longer prompts: they end in the middle of a prefill length, and text goes over a capacity.
LONG_PROMPTS = (75, 200, 500)


@dataclass(frozen=True)
class KnownLogits:
    """Logits after the token at `position` of prompt and completion; `largest` is the largest of all, in magnitude."""

    position: int
    ids: list[int]
    values: list[float]
    largest: float


@dataclass(frozen=True)
class Vector:
    """A prompt and what comes of it, greedily.

    `greedy_ids` end with an eos id if there was one. `pieces` is the text that each of them adds, then what was still
    open. `margin` is the least that a best logit was ahead of the second by, over the largest of its position.
    """

    prompt: str
    ids: list[int]
    greedy_ids: list[int]
    pieces: list[str]
    text: str
    margin: float
    logits: list[KnownLogits]


@dataclass(frozen=True)
class TokenStream:
    """Ids, the text that each of them adds, and last what was still open."""

    ids: list[int]
    pieces: list[str]


@dataclass(frozen=True)
class Vectors:
    """The contents of `vectors.json`; `tolerance` is the error that a logit may have, over its position's largest."""

    tolerance: float
    vectors: list[Vector]
    streams: list[TokenStream]


GreedyStep = tuple[int, mx.array]
"""A token, and the logits (1, vocab_size) that it is the best of."""


class _Detokenizes(Protocol):
    def detokenizer(self) -> StreamingDetokenizer: ...


def make_vectors(
    model: HeliumForCausalLM, tokenizer: HeliumTokenizer, *, context: int, on_progress: OnProgress | None = None
) -> Vectors:
    """Return what the model makes of those prompts that leave room for an answer in `context` tokens: one at least."""
    known = [*SHORT_PROMPTS, *(long_prompt(tokenizer, tokens) for tokens in LONG_PROMPTS)]
    encoded = [(prompt, tokenizer.encode(prompt)) for prompt in known]
    fitting = [(prompt, ids) for prompt, ids in encoded if len(ids) + GREEDY_TOKENS <= context]
    # In a context too short for that, BOS alone and what room there is.
    fitting = fitting or [min(encoded, key=lambda known: len(known[1]))]
    vectors = []
    for done, (prompt, ids) in enumerate(fitting, start=1):
        count = min(GREEDY_TOKENS, context - len(ids) + 1)
        vectors.append(_vector(prompt, ids, list(_greedy(model, ids, tokenizer.eos_token_ids, count)), tokenizer))
        if on_progress:
            on_progress(done, len(fitting))
    dtype = dtype_name(model.model.norm.weight.dtype)
    return Vectors(TOLERANCE[dtype], vectors, list(_streams(tokenizer)))


def check_vectors(runner: BundleRunner, known: Vectors, *, on_progress: OnProgress | None = None) -> float:
    """Compare a bundle's host with what is known, and return the largest error of a logit, relative.

    Raises BundleError that names the first difference.
    """
    for stream in known.streams:
        if _pieces(runner.tokenizer, stream.ids, ()) != stream.pieces:
            raise BundleError(f"the bundle's tokenizer streams the ids {stream.ids} in other pieces than the model's")
    worst = 0.0
    for done, vector in enumerate(known.vectors, start=1):
        worst = max(worst, _check_vector(runner, vector, known.tolerance))
        if on_progress:
            on_progress(done, len(known.vectors))
    return worst


def _check_vector(runner: BundleRunner, vector: Vector, tolerance: float) -> float:
    shown = repr(vector.prompt[:40])
    ids = runner.tokenizer.encode(vector.prompt)
    if ids != vector.ids:
        raise BundleError(f"the bundle's tokenizer gives other ids than the model's for {shown}")
    steps = list(runner.greedy(ids, len(vector.greedy_ids)))
    tokens = [token for token, _ in steps]
    if tokens != vector.greedy_ids:
        if vector.margin > tolerance:
            raise BundleError(f"the bundle continues {shown} otherwise than the model")
        return 0.0
    if _pieces(runner.tokenizer, tokens, runner.bundle.manifest.eos_token_ids) != vector.pieces:
        raise BundleError(f"the bundle streams the completion of {shown} in other pieces than the model")
    error = max(_error(steps[known.position - len(ids) + 1][1], known) for known in vector.logits)
    if error > tolerance:
        raise BundleError(f"the bundle's logits for {shown} differ from the model's by {error:.1e}")
    return error


def _vector(prompt: str, ids: list[int], steps: list[GreedyStep], tokenizer: HeliumTokenizer) -> Vector:
    tokens = [token for token, _ in steps]
    pieces = _pieces(tokenizer, tokens, tokenizer.eos_token_ids)
    # After the prompt, and before the last token: what the cache holds counts there.
    known = [_known(len(ids) - 1 + step, steps[step][1]) for step in sorted({0, len(steps) - 1})]
    margin = min(_margin(logits) for _, logits in steps)
    return Vector(prompt, ids, tokens, pieces, "".join(pieces), margin, known)


class _RecordingSampler(Sampler):
    """Keeps the logits that it was given."""

    def __init__(self, prompt: Sequence[int], vocab_size: int) -> None:
        super().__init__(SamplingOptions(), mx.array(list(prompt), dtype=mx.int32), vocab_size=vocab_size)
        self.logits: list[mx.array] = []

    def __call__(self, logits: mx.array) -> mx.array:
        self.logits.append(logits)
        return super().__call__(logits)


def _greedy(model: HeliumForCausalLM, ids: Sequence[int], eos: Sequence[int], count: int) -> Iterator[GreedyStep]:
    cache, sampler = make_cache(model), _RecordingSampler(ids, model.config.vocab_size)
    logits = prefill(model, ids, cache, step_size=512)
    for step, decoded in enumerate(Decoding(model, cache, sampler, 0).tokens(logits, count)):
        if not decoded.is_sound:
            raise unsound()
        yield decoded.token, sampler.logits[step].astype(mx.float32)
        if decoded.token in eos:
            return


def _streams(tokenizer: HeliumTokenizer) -> Iterator[TokenStream]:
    """Yield the short prompts' ids, and bytes that are not UTF-8 before, after and between text."""
    text = tokenizer.encode("Zoé")
    broken = [[tokenizer.convert_tokens_to_ids(piece) for piece in pieces] for pieces in BROKEN_BYTES]
    for ids in (*map(tokenizer.encode, SHORT_PROMPTS), *broken, *([*text, *ids, *text[1:]] for ids in broken)):
        yield TokenStream(ids, _pieces(tokenizer, ids, ()))


def _pieces(tokenizer: _Detokenizes, tokens: Sequence[int], eos: Sequence[int]) -> list[str]:
    detokenizer = tokenizer.detokenizer()
    return [*("" if token in eos else detokenizer.add_token(token) for token in tokens), detokenizer.finish()]


def _known(position: int, logits: mx.array) -> KnownLogits:
    ids = mx.argsort(-logits[0])[:BEST_LOGITS]
    best, values = cast("list[int]", ids.tolist()), cast("list[float]", logits[0, ids].tolist())
    return KnownLogits(position, best, values, cast(float, mx.abs(logits).max().item()))


def _error(logits: mx.array, known: KnownLogits) -> float:
    difference = mx.abs(logits[0, mx.array(known.ids)] - mx.array(known.values)).max()
    return cast(float, difference.item()) / known.largest


def _margin(logits: mx.array) -> float:
    best = mx.sort(logits[0])[-2:]
    return cast(float, ((best[1] - best[0]) / mx.abs(logits).max()).item())


def long_prompt(tokenizer: HeliumTokenizer, tokens: int) -> str:
    """Return text of at least `tokens` tokens, cut at a word."""
    words = (PARAGRAPH * tokens).split(" ")
    low, high = 1, tokens
    while low < high:
        middle = (low + high) // 2
        if len(tokenizer.encode(" ".join(words[:middle]))) < tokens:
            low = middle + 1
        else:
            high = middle
    return " ".join(words[:low])
