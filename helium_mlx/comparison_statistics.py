"""The figures of a comparison, from what was measured at each position.

Standard errors are those of a ratio of sums over clusters. Neighbouring tokens err together, so that tokens are no
independent draws; windows nearly are, as each begins anew with BOS. With d_i the sum of a quantity over window i (the
difference of the two models' losses, or KL) and n_i its tokens, the mean is D / N and its variance
m / (m - 1) * sum (d_i - n_i D / N)^2 / N^2 over m windows (linearised, Cochran, "Sampling Techniques", 6.4). The ratio
of perplexities is e to the mean difference of losses, token for token on the same text; its error is the mean's times
the ratio. Where tokenizers differ, whole documents are the clusters, and bytes take the place of tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from helium_mlx.comparison_report import LanguageFigures


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


def figures(clusters: Sequence[Measured], octets: int) -> LanguageFigures:
    """Return the figures of all positions of `clusters`, texts of `octets` UTF-8 bytes, together."""
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
        reference_bits_per_byte=reference / math.log(2) / octets,
        candidate_bits_per_byte=candidate / math.log(2) / octets,
        tokens=tokens,
        bytes=octets,
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
