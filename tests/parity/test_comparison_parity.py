"""`compare` against figures from transformers' logits, in double precision, live; needs the extra `parity`."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

sys.path.insert(0, str(Path(__file__).parent.parent / "reference"))

import make_reference  # noqa: E402
from compared_checkpoints import TEXTS, write_pair  # noqa: E402
from tiny_checkpoints import LLAMA  # noqa: E402

import helium_mlx  # noqa: E402
from helium_mlx import ComparisonReport, HeliumTokenizer, compare  # noqa: E402
from helium_mlx.files.hub import DEMO_DIRECTORY  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore::UserWarning")]

WINDOW = 16


def expected(reference: Path, candidate: Path) -> dict[str, float]:
    """Return the figures over all texts, each window run alone by transformers."""
    models: list[Any] = [make_reference.load_reference(path, torch.float64) for path in (reference, candidate)]
    tokenizer = HeliumTokenizer.from_pretrained(DEMO_DIRECTORY)
    divergences, agreements, losses = [], [], [[], []]
    documents = [text for texts in TEXTS.values() for text in texts]
    for text in documents:
        ids = tokenizer.encode(text, add_special_tokens=False)
        count = math.ceil(len(ids) / WINDOW)
        for index in range(count):
            part = torch.tensor(ids[len(ids) * index // count : len(ids) * (index + 1) // count])
            window = torch.cat([torch.tensor([1]), part])
            with torch.no_grad():
                p, q = (torch.log_softmax(model(window[None, :-1]).logits[0].double(), dim=-1) for model in models)
            divergences.append((p.exp() * (p - q)).sum(dim=-1))
            agreements.append(p.argmax(dim=-1) == q.argmax(dim=-1))
            for found, logprobs in zip(losses, (p, q), strict=True):
                found.append(-logprobs.gather(1, part[:, None])[:, 0])
    kl, (a, b) = torch.cat(divergences), (torch.cat(found) for found in losses)
    return {
        "mean_kl": kl.mean().item(),
        "p99_kl": torch.quantile(kl, 0.99).item(),
        "top1_agreement": torch.cat(agreements).double().mean().item(),
        "reference_perplexity": a.mean().exp().item(),
        "candidate_perplexity": b.mean().exp().item(),
        "perplexity_ratio": (b - a).mean().exp().item(),
        "reference_bits_per_byte": a.sum().item() / math.log(2) / len("".join(documents).encode()),
        "tokens": len(kl),
    }


def figures_of(report: ComparisonReport, names: object) -> dict[str, float]:
    return {name: getattr(report, name) for name in names}  # pyright: ignore[reportGeneralTypeIssues]


@pytest.mark.parametrize("family", [{}, {**LLAMA, "num_key_value_heads": 2}, {"tie_word_embeddings": True}])
def test_tiny_checkpoints(tmp_path: Path, family: dict[str, object]) -> None:
    pair = write_pair(tmp_path, **family)
    figures = expected(*pair)
    report = compare(*pair, texts=TEXTS, window=WINDOW, batch_size=3)
    assert figures_of(report, figures) == pytest.approx(figures, rel=2e-4)
    assert figures["mean_kl"] > 1e-3


def test_the_demo_at_four_bits(tmp_path: Path) -> None:
    helium_mlx.convert("demo", str(tmp_path / "q"), quantize=True, dtype="float32", verify=False)
    helium_mlx.convert(str(tmp_path / "q"), str(tmp_path / "rounded"), to="hf", verify=False)
    figures = expected(DEMO_DIRECTORY, tmp_path / "rounded")
    report = compare("demo", tmp_path / "q", texts=TEXTS, window=WINDOW)
    assert figures_of(report, figures) == pytest.approx(figures, rel=1e-3)
    assert figures["mean_kl"] > 1e-3
