"""Options of a causal LM's forward pass beside transformers': which logits are kept, labels of them, masks."""

import random

import mlx.core as mx
import numpy as np
import pytest
from tiny_checkpoints import write_checkpoint

from helium_mlx.errors import HeliumError
from helium_mlx.model.helium import HeliumForCausalLM

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity
B, L, VOCABULARY = 2, 6, 96
Models = tuple[HeliumForCausalLM, torch.nn.Module]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    directory = write_checkpoint(tmp_path_factory.mktemp("model"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    return HeliumForCausalLM.from_pretrained(directory, dtype="float32"), theirs


def drawn(seed: int) -> dict[str, object]:
    """Options of one call, arrays as lists."""
    draw = random.Random(seed)

    def ids(length: int = L) -> list[list[int]]:
        return [[draw.choice([-100, draw.randrange(VOCABULARY)]) for _ in range(length)] for _ in range(B)]

    keep = draw.choice(
        [0, draw.randint(1, L), -draw.randint(1, L - 1), [draw.random() < 0.6 for _ in range(L - 1)] + [True],
         [draw.randrange(-L, L) for _ in range(draw.randint(1, L))]]
    )  # fmt: skip
    kept = np.arange(L)[slice(-keep, None) if isinstance(keep, int) else np.array(keep)]
    options: dict[str, object] = {"logits_to_keep": keep}
    if draw.random() < 0.7:
        options["labels"] = ids(draw.choice([len(kept)] * 3 + [L]))
        if draw.random() < 0.4:
            options["shift_labels"] = ids(len(kept))
        if draw.random() < 0.4:
            options["num_items_in_batch"] = draw.choice([1, 3, 2.5])
    if draw.random() < 0.3:
        heads = draw.choice([1, 2])
        allowed = [[[[draw.random() < 0.7 or i == j for j in range(L)] for i in range(L)]] * heads] * B
        options["attention_mask"] = allowed
    return options


@pytest.mark.parametrize("seed", range(300))
def test_what_comes_out_is_transformers(models: Models, seed: int) -> None:
    ours, theirs = models
    given = drawn(seed)
    ids = np.random.default_rng(seed).integers(4, VOCABULARY, (B, L))
    for_torch = {name: torch.tensor(value) if isinstance(value, list) else value for name, value in given.items()}
    for_mlx = {name: mx.array(value) if isinstance(value, list) else value for name, value in given.items()}
    with torch.no_grad():
        try:
            expected = theirs(torch.tensor(ids), **for_torch)
        except (ValueError, RuntimeError, IndexError):
            # What does not fit there does not fit here.
            with pytest.raises(HeliumError):
                ours(mx.array(ids), **for_mlx)  # pyright: ignore[reportArgumentType]
            return
    if "attention_mask" in for_mlx and seed % 2:
        # The same mask in numbers, which torch does not take.
        for_mlx["attention_mask"] = for_mlx["attention_mask"].astype(mx.int32)  # pyright: ignore
    output = ours(mx.array(ids), **for_mlx)  # pyright: ignore[reportArgumentType]
    np.testing.assert_allclose(np.array(output.logits), expected.logits.numpy(), atol=3e-5)
    assert (output.loss is None) == (expected.loss is None)
    if output.loss is not None:
        np.testing.assert_allclose(np.array(output.loss), expected.loss.numpy(), atol=1e-5, equal_nan=True)
