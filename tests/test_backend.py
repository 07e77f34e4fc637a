"""What Metal cannot do must not be asked of it. Metal runs neither float64 nor most of `mx.linalg`, and nothing here
has a Metal device, so the source is read instead: of every file in the package, whole."""

import ast
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import pytest

import helium_mlx
from helium_mlx import backend

FILES = sorted(Path(helium_mlx.__file__).parent.rglob("*.py"))

# These run with stream=mx.cpu only.
DECOMPOSITIONS = {
    "cholesky", "cholesky_inv", "eig", "eigh", "eigvals", "eigvalsh", "inv", "lu", "lu_factor", "pinv", "qr", "svd",
    "tri_inv",
}  # fmt: skip


def trips(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in ("float64", "complex128"):
            yield f"{node.attr}, line {node.lineno}"
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in DECOMPOSITIONS:
            streams = [ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg == "stream"]
            if "linalg" in ast.unparse(node.func) and streams != ["mx.cpu"]:
                yield f"{ast.unparse(node.func)} without stream=mx.cpu, line {node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_asks_metal_for_what_it_lacks(path: Path) -> None:
    assert list(trips(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    ["x.astype(mx.float64)", "mx.zeros(3, dtype=mx.float64)", "mx.linalg.svd(x)", "mx.linalg.qr(x, stream=mx.gpu)"],
)
def test_the_check_itself_sees(source: str) -> None:
    assert len(list(trips(source))) == 1


def test_the_check_allows_decompositions_on_the_cpu() -> None:
    assert not list(trips("mx.linalg.cholesky(x, stream=mx.cpu)"))


def test_no_file_names_a_device_but_the_backend() -> None:
    named = [path.name for path in FILES if "mx.cpu" in path.read_text() or "mx.gpu" in path.read_text()]
    assert set(named) <= {"backend.py"}


def test_quantized_weights_compute_in_float32_on_the_cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "is_cpu", lambda: True)
    assert backend.compute_dtype(mx.bfloat16, quantized=True) == mx.float32
    assert backend.compute_dtype(mx.bfloat16, quantized=False) == mx.bfloat16
    monkeypatch.setattr(backend, "is_cpu", lambda: False)
    assert backend.compute_dtype(mx.bfloat16, quantized=True) == mx.bfloat16


@pytest.mark.parametrize("shape", [(1, 3), (64, 5), (200, 33), (2, 3, 130, 8), (5, 0)])
def test_a_matrix_stored_for_products_has_the_same_values(shape: tuple[int, ...]) -> None:
    matrix = mx.random.normal(shape)
    stored = backend.for_products(matrix)
    assert stored.shape == matrix.shape
    assert mx.array_equal(stored, matrix)


def test_a_matrix_in_16_bits_is_left_as_it_is() -> None:
    matrix = mx.random.normal((70, 8)).astype(mx.bfloat16)
    assert backend.for_products(matrix) is matrix
