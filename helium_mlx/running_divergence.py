"""The KL divergence of a candidate's next-token distributions from a reference's, over logits that come in parts.

The logits of a text, 48,000 numbers a token in Helium, never exist together: the head's rows come some thousand at a
time, and a softmax that is carried along sums up what they say.
"""

import mlx.core as mx


class RunningDivergence:
    """KL(reference || candidate) of each token, in nats, from logits (tokens, some ids) added part by part."""

    def __init__(self, n_tokens: int) -> None:
        self._reference = LogSum(n_tokens)
        self._candidate = LogSum(n_tokens)
        # The sum of exp(reference - its peak) * (reference - candidate).
        self._weighted = mx.zeros((n_tokens, 1))

    def add(self, reference: mx.array, candidate: mx.array) -> None:
        """Take in the logits of some more ids, float32; evaluated."""
        old_peak = self._reference.peak
        self._reference.add(reference)
        self._candidate.add(candidate)
        peak = self._reference.peak
        mine = (mx.exp(reference - peak) * (reference - candidate)).sum(axis=-1, keepdims=True)
        self._weighted = self._weighted * mx.exp(old_peak - peak) + mine
        mx.eval(self._weighted, self._reference.total, self._candidate.total, peak, self._candidate.peak)

    @property
    def mean(self) -> float:
        """The mean over tokens; not below 0, which rounding errors could make it."""
        expected = self._weighted / self._reference.total
        divergence = expected - self._reference.value + self._candidate.value
        return max(0.0, divergence.mean().item())  # pyright: ignore[reportArgumentType]


class LogSum:
    """log(sum(exp(logits))) of each token, over logits (tokens, some ids) added part by part.

    `total` is the sum of exp(logits - peak); nothing is evaluated.
    """

    def __init__(self, n_tokens: int) -> None:
        # Not -inf, of which differences are no numbers.
        self.peak = mx.full((n_tokens, 1), -1e30)
        self.total = mx.zeros((n_tokens, 1))

    def add(self, logits: mx.array) -> None:
        """Take in the logits of some more ids, float32."""
        peak = mx.maximum(self.peak, logits.max(axis=-1, keepdims=True))
        self.total = self.total * mx.exp(self.peak - peak) + mx.exp(logits - peak).sum(axis=-1, keepdims=True)
        self.peak = peak

    @property
    def value(self) -> mx.array:
        """The logarithm, float32 (tokens, 1)."""
        return self.peak + mx.log(self.total)
