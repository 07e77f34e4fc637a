"""The figures of a comparison on a stretch of text, and what they are computed from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from helium_mlx.table import short_repr


@dataclass(frozen=True)
class LanguageFigures:
    """How far the candidate is from the reference on one language, or on all of them.

    `mean_kl` and `p99_kl` are KL(reference || candidate) over the scored positions, in nats, `top1_agreement` the share
    of positions at which both hold the same token for the most probable; all three are None where the two models have
    different tokenizers. Perplexities are then those of a UTF-8 byte, else of a token; `perplexity_ratio` is the
    candidate's over the reference's. An `_error` is a standard error (`ratio_of_sums`), None where there
    are not two windows to take it from. `tokens` counts the reference's scored tokens, `bytes` the text's UTF-8 bytes.
    """

    mean_kl: float | None
    mean_kl_error: float | None
    p99_kl: float | None
    top1_agreement: float | None
    reference_perplexity: float
    candidate_perplexity: float
    perplexity_ratio: float
    perplexity_ratio_error: float | None
    reference_bits_per_byte: float
    candidate_bits_per_byte: float
    tokens: int
    bytes: int

    def __repr__(self) -> str:
        return short_repr(self, **self._summary())

    def _summary(self) -> dict[str, object]:
        return {
            "mean_kl": self.mean_kl,
            "top1_agreement": self.top1_agreement,
            "perplexity_ratio": self.perplexity_ratio,
            "tokens": self.tokens,
        }


@dataclass(frozen=True)
class ComparedModel:
    """One side of a comparison.

    `program` is what ran it, "helium_mlx" or "mlx-lm"; `dtype` what it computed in; `weight_bytes` what its weights
    take on disk, and `bits_per_weight` those bits over the number of weights, scales and biases included.
    """

    name: str
    program: str
    dtype: str
    weight_bytes: int
    bits_per_weight: float

    def described(self) -> str:
        """Return its name, size and dtype, and its program if that is another."""
        program = "" if self.program == "helium_mlx" else f" by {self.program}"
        return (
            f"{self.name}, {self.weight_bytes / 1e6:,.1f} MB, {self.bits_per_weight:.2f} bits a weight, "
            f"computed in {self.dtype}{program}"
        )


@dataclass(frozen=True)
class OwnText:
    """A text that is not the package's: its file's name without a path, or what it was called; and its SHA-256."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Measured:
    """What was measured on a stretch of text, position by position.

    `weight` is what the stretch counts for in a mean: its tokens, or its bytes where tokenizers differ. `reference` and
    `candidate` are negative log-probabilities of the text's tokens, in nats. Where the two distributions cannot be
    compared, `divergences` and `agreements` are empty.
    """

    weight: int
    reference: Sequence[float]
    candidate: Sequence[float]
    divergences: Sequence[float]
    agreements: Sequence[bool]


def figures(clusters: Sequence[Measured], n_bytes: int) -> LanguageFigures:
    """Return the figures of all positions of `clusters`, texts of `n_bytes` UTF-8 bytes, together."""
    tokens = sum(len(cluster.reference) for cluster in clusters)
    weights = [cluster.weight for cluster in clusters]
    references = [math.fsum(cluster.reference) for cluster in clusters]
    candidates = [math.fsum(cluster.candidate) for cluster in clusters]
    reference, candidate = math.fsum(references), math.fsum(candidates)
    loss, loss_error = ratio_of_sums([b - a for a, b in zip(references, candidates, strict=True)], weights)
    divergences = [value for cluster in clusters for value in cluster.divergences]
    mean_kl = mean_kl_error = p99_kl = top1 = None
    if divergences:
        mean_kl, mean_kl_error = ratio_of_sums([math.fsum(cluster.divergences) for cluster in clusters], weights)
        p99_kl = percentile(divergences, 0.99)
        top1 = sum(sum(cluster.agreements) for cluster in clusters) / tokens
    ratio = _exp(loss)
    return LanguageFigures(
        mean_kl=mean_kl,
        mean_kl_error=mean_kl_error,
        p99_kl=p99_kl,
        top1_agreement=top1,
        reference_perplexity=_exp(reference / sum(weights)),
        candidate_perplexity=_exp(candidate / sum(weights)),
        perplexity_ratio=ratio,
        perplexity_ratio_error=None if loss_error is None else ratio * loss_error,
        reference_bits_per_byte=reference / math.log(2) / n_bytes,
        candidate_bits_per_byte=candidate / math.log(2) / n_bytes,
        tokens=tokens,
        bytes=n_bytes,
    )


def ratio_of_sums(sums: Sequence[float], weights: Sequence[float]) -> tuple[float, float | None]:
    """Return the sum of `sums` over that of `weights`, and its standard error over clusters; None for a single one."""
    total, count = math.fsum(weights), len(sums)
    mean = math.fsum(sums) / total
    if count < 2:
        return mean, None
    squares = math.fsum((value - mean * weight) ** 2 for value, weight in zip(sums, weights, strict=True))
    return mean, math.sqrt(count / (count - 1) * squares) / total


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that `share` of `values` lie below, by linear interpolation between the two nearest ranks."""
    ordered, rank = sorted(values), share * (len(values) - 1)
    below = math.floor(rank)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (rank - below) * (ordered[above] - ordered[below])


def _exp(value: float) -> float:
    return math.exp(value) if value < 709 else math.inf
