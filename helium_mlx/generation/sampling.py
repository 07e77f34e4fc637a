"""From logits to the next token: bias, bans, penalties, filters and the draw, all on the device, none evaluated here.

The order is transformers': bias, bans, repetition penalty, the caller's processors, temperature, top-k, top-p, min-p;
each filter sees what the one before it left, renormalised. Presence and frequency penalties, OpenAI's, come after the
repetition penalty, as in vLLM. All of it is float32, whatever the logits are in; greedy without what comes before the
temperature is an argmax of the logits themselves.

The draw is a race: token i arrives after an exponential time of rate p_i, and the first one is taken, which is i with
probability p_i (the Gumbel-max trick without logarithms of p). The times of the n-th token of a request depend on its
seed, on n and on i alone, so the same seed gives the same text however many positions a pass draws, and logits that
differ in the last bit give another token hardly ever. MLX's global random state is neither read nor changed.

Deviates from transformers: top-k keeps exactly k tokens where several are equal to the k-th, top-p sums from the most
probable on, and reserved ids are banned from sampled text. It does not know beams, or several requests at once:
`model/processors.py` has transformers' steps for batches.
"""

import copy
import math
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import mlx.core as mx

from helium_mlx import backend
from helium_mlx.errors import OptionError, shown
from helium_mlx.model.temperature import bounded_temperature
from helium_mlx.option_values import plain, real, require_number, require_whole

if TYPE_CHECKING:
    from helium_mlx.model.processors import Processor

# Below this only the most probable token is left, and float32 still tells it from 0.
_LEAST_TOP_P = 1e-30

# Beyond these nothing changes any more, and float32 stays finite: 1e9 / 1e-20 is far below its 3e38. A temperature that
# it cannot hold would be infinite, and make a ban, which is minus infinity, no number.
MAX_BIAS = 1e9

COUNTED_PENALTIES = ("presence_penalty", "frequency_penalty")
"""Options that lessen the logits of tokens by how often they have been generated."""


@dataclass(frozen=True)
class SamplingOptions:
    """What shapes the draw. Temperature 0 is greedy: then only bias, bans and penalties have an effect.

    `repetition_context_size` tokens, prompt included, are penalised; None is all of them. Of generated tokens alone,
    the logit of one that has come is lessened by `presence_penalty`, and for each time that it has by
    `frequency_penalty`, -2 to 2 (https://platform.openai.com/docs/api-reference/completions). `logit_bias`, token id to
    what is added to its logit, -1e9 to 1e9. `banned_ids` are never generated; the ids that a tokenizer reserves are
    not either while the temperature is above 0, but for those that `logit_bias` names, be it with 0.
    `logits_processors`: functions of the ids so far, int32 (1, T), and logits, float32 (1, vocab_size), that return
    logits; they come after bias, bans and the penalty, and before temperature.

    Raises GenerationError for a value out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    repetition_context_size: int | None = None
    seed: int | None = None
    logit_bias: Mapping[int, float] | None = None
    banned_ids: Collection[int] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logits_processors: Sequence["Processor"] = ()

    def __post_init__(self) -> None:
        size, seed = self.repetition_context_size, self.seed
        checked: dict[str, object] = {
            "temperature": require_number("temperature", self.temperature, 0, _LARGEST, "a finite number, 0 or more"),
            "top_p": require_number("top_p", self.top_p, 0, 1, "above 0 and at most 1", above=0),
            "top_k": require_whole("top_k", self.top_k, 0, allowed="a whole number, 0 or more"),
            "min_p": require_number("min_p", self.min_p, 0, 1, "from 0 to 1"),
            "repetition_penalty": require_number("repetition_penalty", self.repetition_penalty, 1e-3, 1e3, _PENALTIES),
            **{name: require_number(name, getattr(self, name), -2, 2, "from -2 to 2") for name in COUNTED_PENALTIES},
            # Copies: the caller's may change while the request runs.
            "logit_bias": _checked_bias(self.logit_bias),
            "banned_ids": _checked_bans(self.banned_ids),
            "logits_processors": _checked_processors(self.logits_processors),
        }
        if size is not None:
            sizes = "a whole number, 1 or more, or None for the whole context"
            checked["repetition_context_size"] = require_whole("repetition_context_size", size, 1, allowed=sizes)
        if seed is not None:
            checked["seed"] = require_whole("seed", seed, 0, 2**64 - 1, allowed="a whole number from 0 to 2^64 - 1")
        for name, value in checked.items():
            object.__setattr__(self, name, value)


_LARGEST = sys.float_info.max
_PENALTIES = "a number from 0.001 to 1000"


def _checked_bias(bias: object) -> dict[int, float] | None:
    if bias is None:
        return None
    if not isinstance(bias, Mapping):
        raise OptionError(f"logit_bias is {type(bias).__name__}; it must be a mapping from token ids to numbers")
    checked: dict[int, float] = {}
    for token, value in cast("Mapping[object, object]", bias).items():
        number = real(value)
        if number is None or not -MAX_BIAS <= number <= MAX_BIAS:
            raise OptionError(
                f"logit_bias has {shown(plain(value))} for token {shown(token)}; it must be a number from -1e9 to 1e9 "
                "(banned_ids rules a token out)"
            )
        checked[_token_id("logit_bias", token)] = float(number)
    return checked


def _checked_bans(ids: object) -> frozenset[int]:
    to_list = getattr(ids, "tolist", None)
    listed = () if ids is None else to_list() if callable(to_list) else ids
    if not isinstance(listed, Collection) or isinstance(listed, (str, bytes, Mapping)):
        raise OptionError(f"banned_ids is {shown(ids)}; it must be a sequence or set of token ids")
    return frozenset(_token_id("banned_ids", token) for token in cast("Collection[object]", listed))


def _checked_processors(functions: object) -> tuple[object, ...]:
    listed = () if functions is None else functions
    if not isinstance(listed, (list, tuple)) or not all(map(callable, listed)):
        raise OptionError(f"logits_processors is {shown(functions)}; it must be a list of functions")
    return tuple(listed)


def _token_id(name: str, token: object) -> int:
    number = plain(token)
    if type(number) is not int or number < 0:
        raise OptionError(f"{name} has the token {shown(number)}; token ids are whole numbers, 0 or more")
    return number


class Sampler:
    """Draws one token after another for one request, whose prompt is `prompt`, integers of shape (T,).

    It continues after the tokens `generated`. What it remembers are a count and, for penalties, an array or two, so a
    copy is cheap. To draw for several positions in one pass, of which only the first may turn out to hold: `draw` all,
    then `take` those that do.

    Raises GenerationError for a bias or ban of an id that `vocab_size` does not reach, and if nothing is left.
    """

    def __init__(
        self,
        options: SamplingOptions,
        prompt: mx.array,
        *,
        vocab_size: int,
        reserved_ids: Collection[int] = (),
        generated: Sequence[int] = (),
    ) -> None:
        came = mx.array(list(generated), dtype=mx.int32)
        self.options = options
        self.drawn = len(generated)
        self._seed = fresh_seed() if options.seed is None else options.seed
        self._adjustment = logit_adjustment(options, vocab_size, reserved_ids)
        self._past = int(prompt.size) + len(generated)
        self._last_seen: mx.array | None = None
        if options.repetition_penalty != 1:
            self._last_seen = _last_seen(mx.concatenate([prompt, came]), vocab_size)
        self._counts: mx.array | None = None
        if options.presence_penalty or options.frequency_penalty:
            self._counts = _counts(came, vocab_size)
        self._process, self._ids = None, None
        if options.logits_processors:
            # Few requests have any.
            from helium_mlx.model.processors import LogitsProcessorList

            self._process = LogitsProcessorList.of(options.logits_processors)
            self._ids = mx.concatenate([prompt.astype(mx.int32), came])[None]

    def __call__(self, logits: mx.array) -> mx.array:
        """Return the next token, uint32 of shape (1,), for logits of shape (1, vocab_size), and take it."""
        token = self.draw(logits)
        self.take(token)
        return token

    def draw(self, logits: mx.array) -> mx.array:
        """Return the tokens, uint32 (K,), of the next K positions for their logits (K, vocab_size), taking none.

        Each is what the sampler would draw if those before it had been taken.
        """
        if self.state and logits.shape[0] > 1:
            ahead = self.copy()
            return mx.concatenate([ahead(logits[row : row + 1]) for row in range(logits.shape[0])])
        if self._adjustment is not None:
            logits = _adjusted(logits, self._adjustment)
        if self._last_seen is not None:
            logits = penalize(logits, self._is_penalized(self._last_seen), self.options.repetition_penalty)
        if self._counts is not None:
            presence, frequency = self.options.presence_penalty, self.options.frequency_penalty
            logits = _lessened(logits, self._counts, mx.array(presence), mx.array(frequency))
        if self._process is not None and self._ids is not None:
            logits = self._process(self._ids, logits)
        if self.options.temperature == 0:
            return mx.argmax(logits, axis=-1)
        keys = [key_of(self._seed, self.drawn + row) for row in range(logits.shape[0])]
        return race(*filtered_probabilities(logits, self.options), random_bits(keys, logits.shape[-1]))

    def among(self, logits: mx.array) -> mx.array:
        """Return what tokens are drawn from, logits (K, vocab_size): minus infinity for those that cannot come."""
        return logits

    def take(self, tokens: mx.array) -> None:
        """Continue after `tokens`, integers (K,): those that the next positions came to have."""
        count = tokens.size
        if self._last_seen is not None:
            places = mx.arange(self._past + 1, self._past + count + 1) if count > 1 else mx.array(self._past + 1)
            self._last_seen = self._last_seen.at[tokens].maximum(places)
        if self._counts is not None:
            self._counts = self._counts.at[tokens].add(1)
        if self._ids is not None:
            self._ids = mx.concatenate([self._ids, tokens.astype(mx.int32)[None]], axis=1)
        self._past += count
        self.drawn += count

    def copy(self) -> "Sampler":
        """Return one that continues from here by itself."""
        return copy.copy(self)

    @property
    def state(self) -> list[mx.array]:
        """The arrays kept from draw to draw, for `mx.async_eval`: left lazy, they would belong to one thread."""
        return [kept for kept in (self._last_seen, self._counts, self._ids) if kept is not None]

    @property
    def is_held(self) -> bool:
        """Whether `among` may leave tokens out, and waits for the token before."""
        return False

    @property
    def takes_best(self) -> bool:
        """Whether the token is the argmax of the logits as they are, so that many rows can be drawn as one."""
        return self.options.temperature == 0 and self._adjustment is None and not self.state

    def _is_penalized(self, last_seen: mx.array) -> mx.array:
        size = self.options.repetition_context_size
        return last_seen > (0 if size is None else max(self._past - size, 0))


def logit_adjustment(options: SamplingOptions, vocab_size: int, reserved_ids: Collection[int] = ()) -> mx.array | None:
    """Return what is added to logits, float32 (1, vocab_size): biases, and -inf for bans; None if there are none.

    Raises GenerationError for an id out of the vocabulary, and if every one is banned.
    """
    bias = options.logit_bias or {}
    banned = banned_tokens(options, vocab_size, reserved_ids)
    if not bias and not banned:
        return None
    values = {**bias, **dict.fromkeys(banned, -math.inf)}
    adjustment = mx.zeros((1, vocab_size))
    adjustment[:, mx.array(list(values))] = mx.array(list(values.values()))
    # Left lazy, it would belong to this thread.
    mx.eval(adjustment)
    return adjustment


def banned_tokens(options: SamplingOptions, vocab_size: int, reserved_ids: Collection[int] = ()) -> frozenset[int]:
    """Return the tokens that cannot be drawn, without an array. Raises GenerationError as `logit_adjustment` does."""
    bias = options.logit_bias or {}
    banned = frozenset(options.banned_ids)
    for name, ids in (("logit_bias", bias), ("banned_ids", banned)):
        highest = max(ids, default=0)
        if highest >= vocab_size:
            raise OptionError(
                f"{name} has the token {highest}; the model's ids are 0 to vocab_size - 1 = {vocab_size - 1}"
            )
    if options.temperature > 0:
        # A model may have fewer ids than the tokenizer it is run with.
        banned |= {token for token in reserved_ids if token < vocab_size} - bias.keys()
    if len(banned) >= vocab_size:
        raise OptionError(f"all {vocab_size} tokens are banned, by banned_ids or as reserved ones; leave at least one")
    return banned


def penalize(logits: mx.array, penalized: mx.array, penalty: float) -> mx.array:
    """Divide positive logits by `penalty` and multiply negative ones where `penalized` (arXiv:1909.05858), in float32.

    `logits`: (1, vocab_size); `penalized`: booleans (vocab_size,).
    """
    logits = logits.astype(mx.float32)
    # Of the product and the quotient, a penalty above 1 takes the smaller, whatever the sign, and one below the larger.
    choose = mx.minimum if penalty > 1 else mx.maximum
    return mx.where(penalized, choose(logits * penalty, logits / penalty), logits)


def filtered_probabilities(logits: mx.array, options: SamplingOptions) -> tuple[mx.array, mx.array | None]:
    """Return what the filters leave of the probabilities, float32 (K, C), and the tokens they belong to, (K, C).

    None for the tokens is the vocabulary in its order. A token that was filtered out has the probability 0; the most
    probable one always stays. What is left is not normalised again. `logits`: (K, vocab_size).
    """
    tokens, vocab_size = None, logits.shape[-1]
    logits = _tempered(logits, mx.array(bounded_temperature(options.temperature)))
    if 0 < options.top_k < vocab_size:
        tokens = mx.argpartition(logits, vocab_size - options.top_k, axis=-1)[:, vocab_size - options.top_k :]
        logits = mx.take_along_axis(logits, tokens, axis=-1)
    left = mx.softmax(logits, axis=-1)
    if options.top_p < 1:
        if tokens is None:
            # Tokens below this cannot even together reach 1 - top_p. Equal zeros make sorting twice as fast or more.
            # A little lower: all tokens may be as probable as each other, but for rounding.
            left = _at_least(left, mx.array(0.999 * (1 - options.top_p) / vocab_size))
        order = mx.argsort(left, axis=-1)
        left = mx.take_along_axis(left, order, axis=-1)
        more_probable = mx.cumsum(left, axis=-1, reverse=True, inclusive=False)
        left = _where_below(more_probable, mx.array(max(options.top_p, _LEAST_TOP_P)), left)
        tokens = order if tokens is None else mx.take_along_axis(tokens, order, axis=-1)
    if options.min_p > 0:
        left = _at_least(left, left.max(axis=-1, keepdims=True), mx.array(options.min_p))
    return left, tokens


def race(left: mx.array, tokens: mx.array | None, bits: mx.array) -> mx.array:
    """Return one token a row, uint32 (K,), drawn in proportion to the probabilities that are left.

    `left` and `tokens` are what `filtered_probabilities` gives; `bits`: random uint32 (K, vocab_size), a token's own.
    """
    if tokens is not None:
        bits = mx.take_along_axis(bits, tokens, axis=-1)
    times = _times(bits, left)
    if tokens is None:
        return mx.argmax(times, axis=-1)
    first = mx.argmax(times, axis=-1, keepdims=True)
    return mx.take_along_axis(tokens, first, axis=-1)[:, 0]


# 2^32, which the largest bits round to, becomes the largest float32 below 1.
_BITS_TO_UNIT = 2.0**-32 * (1 - 2.0**-24)


@backend.fuse
def _times(bits: mx.array, left: mx.array) -> mx.array:
    """Return minus the times of the race. Where the probability is 0 it takes forever."""
    # Minus a number between 0 and 1, neither included: float32 is finest near 0, where the winners are.
    uniform = bits * -_BITS_TO_UNIT - 2.0**-33
    return mx.log1p(uniform) / left


@backend.fuse
def _adjusted(logits: mx.array, adjustment: mx.array) -> mx.array:
    return logits.astype(mx.float32) + adjustment


@backend.fuse
def _lessened(logits: mx.array, counts: mx.array, presence: mx.array, frequency: mx.array) -> mx.array:
    return logits.astype(mx.float32) - counts * frequency - (counts > 0) * presence


@backend.fuse
def _tempered(logits: mx.array, temperature: mx.array) -> mx.array:
    return logits.astype(mx.float32) / temperature


@backend.fuse
def _at_least(left: mx.array, *factors: mx.array) -> mx.array:
    """Return `left`, with 0 where it is below the product of `factors`."""
    return mx.where(left < math.prod(factors), 0.0, left)


@backend.fuse
def _where_below(values: mx.array, bound: mx.array, left: mx.array) -> mx.array:
    return mx.where(values < bound, left, 0.0)


def bias_by_name(named: Mapping[str, float]) -> dict[int, float]:
    """Return a `logit_bias` whose tokens are named, as JSON has to. Raises OptionError for a name that is no id."""
    for name in named:
        if not (name.isascii() and name.isdigit() and len(name) < 10):
            raise OptionError(f"logit_bias has {shown(name)}; its names must be token ids, such as '17'")
    return {int(name): value for name, value in named.items()}


def fresh_seed() -> int:
    """Return a seed that nobody chose, from 0 to 2^64 - 1."""
    return int.from_bytes(os.urandom(8), "little")


def key_of(seed: int, n: int) -> mx.array:
    """Return the key of the n-th token, counted from 0, of a request with `seed`: the same on every machine."""
    # Greedy completions start without it.
    import hashlib

    digest = hashlib.blake2b(seed.to_bytes(8, "little") + n.to_bytes(8, "little"), digest_size=8).digest()
    return mx.random.key(int.from_bytes(digest, "little"))


def random_bits(keys: list[mx.array], size: int) -> mx.array:
    """Return random uint32 of shape (len(keys), size), each row by its key alone."""
    pairs = (size + 1) // 2
    # Splitting a key is the one way to MLX's random bits as they are: each half of a new key has 32 of them.
    rows = [mx.random.split(key, pairs) for key in keys]
    bits = (rows[0] if len(rows) == 1 else mx.concatenate(rows)).reshape(len(keys), 2 * pairs)
    return bits if size == 2 * pairs else bits[:, :size]


def token_logprobs(logits: mx.array, tokens: mx.array, top: int) -> list[mx.array]:
    """Return the log-probabilities of `tokens`, integers (K,), under logits (K, vocab_size): float32 (K,), lazily.

    If `top` is above 0, also the ids of that many most probable tokens, uint32 (K, top), in no order, and their
    log-probabilities, float32 (K, top). All are the model's own, before temperature and filters.
    """
    logits, vocab_size = logits.astype(mx.float32), logits.shape[-1]
    total = mx.logsumexp(logits, axis=-1, keepdims=True)
    values = (mx.take_along_axis(logits, tokens[:, None], axis=-1) - total)[:, 0]
    if not top:
        return [values]
    ids = mx.argpartition(logits, vocab_size - top, axis=-1)[:, vocab_size - top :]
    return [values, ids, mx.take_along_axis(logits, ids, axis=-1) - total]


def _last_seen(prompt: mx.array, vocab_size: int) -> mx.array:
    """Return for each token its last place in the prompt, counted from 1, 0 if it has none: int32 (vocab_size,)."""
    places = mx.zeros(vocab_size, dtype=mx.int32).at[prompt].maximum(mx.arange(1, prompt.size + 1))
    mx.eval(places)
    return places


def _counts(tokens: mx.array, vocab_size: int) -> mx.array:
    """Return how often each token is among `tokens`, integers (T,): int32 (vocab_size,)."""
    counts = mx.zeros(vocab_size, dtype=mx.int32).at[tokens].add(1)
    mx.eval(counts)
    return counts
