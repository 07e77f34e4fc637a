"""Memory wired for a GPU: with Metal's answers played, since no test has one."""

import io
from collections.abc import Callable

import mlx.core as mx
import pytest

from helium_mlx import backend, memory_limits
from helium_mlx.checkpoint.checkpoint import open_checkpoint
from helium_mlx.compare import main as compare_main
from helium_mlx.comparison import sides
from helium_mlx.diagnostics import worker
from helium_mlx.files.hub import DEMO_DIRECTORY
from helium_mlx.generate import main as generate_main
from helium_mlx.memory_limits import SharedLimit, wired_memory


@pytest.fixture
def wired(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What MLX is told, which said 5 before."""
    said: list[int] = []
    monkeypatch.setattr(memory_limits, "WIRED_LIMIT", SharedLimit(lambda limit: (said.append(limit), 5)[1]))
    monkeypatch.setattr(backend, "wireable_bytes", lambda: 9000)
    return said


def test_memory_is_wired_meanwhile_whatever_happens(wired: list[int]) -> None:
    with pytest.raises(ZeroDivisionError), wired_memory():
        assert wired == [9000]
        raise ZeroDivisionError
    assert wired == [9000, 5]


def test_nothing_is_wired_where_there_is_no_metal(wired: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "wireable_bytes", lambda: None)
    with wired_memory():
        pass
    assert wired == []


@pytest.mark.parametrize(
    ("main", "flags"),
    [
        (generate_main, ["--model", "demo", "--prompt", "Once", "--max-tokens", "2"]),
        (compare_main, ["--reference", "demo", "--candidate", "demo", "--languages", "en", "--window", "16"]),
    ],
    ids=["generate", "compare"],
)
@pytest.mark.usefixtures("capsys")
def test_commands_wire_memory(wired: list[int], main: Callable[[list[str]], int], flags: list[str]) -> None:
    assert main(flags) == 0
    assert wired == [9000, 5]


def test_the_benchmarks_process_wires_memory(
    wired: list[int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[list[int]] = []
    monkeypatch.setattr(worker, "serve", lambda *_: seen.append(list(wired)))
    monkeypatch.setattr(worker.os, "dup2", lambda *_: None)
    monkeypatch.setattr(worker.os, "fdopen", lambda *_, **__: io.StringIO())
    monkeypatch.setattr("sys.argv", ["worker", "helium_mlx", str(DEMO_DIRECTORY)])
    assert worker.main() == 0
    assert (seen, wired) == ([[9000]], [9000, 5])


def test_a_comparison_that_does_not_fit_is_refused_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--reference", "demo", "--candidate", "demo", "--languages", "en", "--quiet"]
    weights = 2 * sides.parameter_count(open_checkpoint(DEMO_DIRECTORY))
    monkeypatch.setattr(sides, "load_model", lambda *_, **__: pytest.fail("it was loaded"))
    for limit, dtype, said in (
        (weights - 1, "bfloat16", "demo: weights of 3.6 MB in bfloat16 are over the 3.6 MB that this device recommends;"
         " take a smaller or quantized model"),
        (weights, "float32", "demo: weights of 7.2 MB in float32 are over the 3.6 MB that this device recommends; "
         "give dtype bfloat16 or float16, or take a smaller or quantized model"),
    ):  # fmt: skip
        monkeypatch.setattr(sides, "working_set_bytes", lambda limit=limit: limit)
        assert compare_main([*flags, "--dtype", dtype]) == 1
        assert capsys.readouterr().err == f"error: {said}\n"


def test_a_comparison_that_fits_or_of_which_nothing_is_known_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    side = sides.open_side("demo")
    for limit in (4 * sides.parameter_count(open_checkpoint(DEMO_DIRECTORY)), None):
        monkeypatch.setattr(sides, "working_set_bytes", lambda limit=limit: limit)
        sides.require_fits(side, mx.float32)
