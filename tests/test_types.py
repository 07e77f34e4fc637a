"""What type checkers say of every snippet of README and docs; needs the extra `dev`."""

import subprocess
import sys
from pathlib import Path

import pytest
from test_docs import PAGES, blocks

pytest.importorskip("mypy")
pytest.importorskip("basedpyright")


@pytest.fixture(scope="module")
def snippets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("snippets")
    for page in PAGES:
        # A page's blocks build on each other.
        code = "\n".join(blocks(page, "python"))
        if code:
            (folder / f"{page.replace('/', '_').removesuffix('.md').lower()}.py").write_text(code, encoding="utf-8")
    assert len(list(folder.iterdir())) >= 6
    return folder


@pytest.mark.parametrize(
    "checker",
    [
        ["mypy", "--strict", "--follow-imports=silent", "--cache-dir", ".cache"],
        ["basedpyright", "--level", "error", "--pythonpath", sys.executable],
    ],
    ids=["mypy", "basedpyright"],
)
def test_every_snippet_is_clean(snippets: Path, checker: list[str]) -> None:
    words = [sys.executable, "-m", *checker, "."]
    said = subprocess.run(words, cwd=snippets, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout + said.stderr


def test_a_misspelled_option_is_seen(snippets: Path) -> None:
    folder = snippets.parent / "wrong"
    folder.mkdir(exist_ok=True)
    code = 'import helium_mlx\n\nhelium_mlx.stream_generate(*helium_mlx.load("demo"), "A", max_token=3)\n'
    (folder / "wrong.py").write_text(code, encoding="utf-8")
    words = [sys.executable, "-m", "basedpyright", "--level", "error", "--pythonpath", sys.executable, "."]
    said = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert said.returncode == 1 and 'No parameter named "max_token"' in said.stdout


def test_a_list_of_prompts_gives_a_list_of_texts(snippets: Path) -> None:
    folder = snippets.parent / "revealed"
    folder.mkdir()
    code = (
        "import helium_mlx\n\n"
        'model, tokenizer = helium_mlx.load("demo")\n'
        'texts: list[str] = helium_mlx.generate(model, tokenizer, ["A", "B"], max_tokens=3)\n'
        "more: list[str] = helium_mlx.generate(model, tokenizer, [[1, 2], [1, 3]])\n"
        'text: str = helium_mlx.generate(model, tokenizer, "A")\n'
        "same: str = helium_mlx.generate(model, tokenizer, [1, 2], temperature=0.5)\n"
    )
    (folder / "lists.py").write_text(code, encoding="utf-8")
    words = [sys.executable, "-m", "basedpyright", "--level", "error", "--pythonpath", sys.executable, "."]
    said = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout
