"""README and docs must go on telling the truth: their commands parse, their Python runs, links lead somewhere, the
tree is the package's."""

import argparse
import importlib
import importlib.util
import re
import shlex
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest

import helium_mlx
from helium_mlx.cli import COMMANDS
from helium_mlx.files.hub import DEMO_DIRECTORY

ROOT = Path(__file__).parent.parent
PACKAGE = Path(helium_mlx.__file__).parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
# Pages whose links and commands hold too, while their other code is not Python that runs here.
PAGES = [*DOCS, "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "examples/menubar.md", "examples/cpp/README.md"]
REAL_MODEL = "mlx-community/helium-1-preview-2b-4bit"

FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# These end a command and begin another.
SEPARATORS = re.compile(r"&&|\|")


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return [code for said, code in FENCED.findall(text_of(page)) if said == language]


def spans(page: str) -> list[str]:
    """The code in the running text."""
    return re.findall(r"`([^`\n]+)`", FENCED.sub("", text_of(page)))


def command_in(line: str) -> tuple[str, list[str]] | None:
    """A command of the package, or a script of the repository, with its arguments; None where it is neither."""
    words = shlex.split(line, comments=True)
    for i, word in enumerate(words):
        if word.startswith("helium_mlx.") and words[i - 1] == "-m":
            return word.removeprefix("helium_mlx."), words[i + 1 :]
        if Path(word).name == "helium-mlx" or (word == "helium_mlx" and words[i - 1] == "-m"):
            return words[i + 1], words[i + 2 :]
        if word == "convert.py":
            return "convert", words[i + 1 :]
        if i and re.fullmatch(r"(examples|tests)/.*\.py", word):
            return word, words[i + 1 :]
    return None


def command_lines() -> list[tuple[str, str, list[str]]]:
    """Every run of a command in the pages, as (page, command, arguments); in running text, those with arguments."""
    found = []
    for page in PAGES:
        lines = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
        said = [span for span in spans(page) if re.match(r"python3? |convert |helium-mlx ", span)]
        for line in [*lines, *said]:
            for part in SEPARATORS.split(line):
                command = command_in(part)
                if command and (command[1] or line in lines):
                    found.append((page, *command))
    return found


def tree_of(page: str) -> list[str]:
    """The lines of the block that draws the package."""
    (tree,) = [block for block in blocks(page, "") if block.startswith("helium_mlx/\n")]
    return tree.splitlines()[1:]


def anchors(page: str) -> set[str]:
    """The headings of a page as GitHub makes anchors of them."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", text_of(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links() -> list[tuple[str, str]]:
    return [(page, target) for page in PAGES for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page))]


@pytest.mark.parametrize(("page", "command", "arguments"), command_lines())
def test_every_command_parses(page: str, command: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if command.endswith(".py"):
        script_parses(ROOT / command, arguments, monkeypatch)
        return
    assert command in COMMANDS
    if arguments != ["--help"]:
        parser: argparse.ArgumentParser = importlib.import_module(f"helium_mlx.{command}").build_parser()
        parser.parse_args(arguments)


def script_parses(script: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a script up to where its parser has taken the arguments."""
    source = script.read_text(encoding="utf-8")
    if "ArgumentParser" not in source:
        assert not arguments
        return
    if re.search(r"^import torch$", source, re.MULTILINE):
        for heavy in ("torch", "transformers", "transformers.convert_slow_tokenizer"):
            monkeypatch.setitem(sys.modules, heavy, MagicMock())

    class ParsedError(Exception):
        pass

    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser: argparse.ArgumentParser, argv: list[str] | None = None) -> None:
        parse(parser, argv)
        raise ParsedError

    monkeypatch.syspath_prepend(str(script.parent))
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    spec = importlib.util.spec_from_file_location(f"parsed_{script.stem}", script)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    # A dataclass looks its module up.
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    with pytest.raises(ParsedError):
        module.main()


def test_the_pages_hold_commands_of_every_kind() -> None:
    found = {command for _, command, _ in command_lines()}
    assert found >= COMMANDS.keys()
    assert any(command.startswith("examples/") for command in found)


@pytest.mark.parametrize("page", [page for page in DOCS if blocks(page, "python")])
def test_the_python_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks(page, "python"):
        # The demo stands for the model that would have to be downloaded.
        exec(block.replace(REAL_MODEL, "demo"), names)
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(("page", "target"), links())
def test_every_link_leads_somewhere(page: str, target: str) -> None:
    if re.match(r"https?://", target):
        return
    path, _, anchor = target.partition("#")
    linked = (ROOT / page).parent / path if path else ROOT / page
    assert linked.exists()
    if anchor:
        assert anchor in anchors(str(linked.resolve().relative_to(ROOT)))


def test_the_readme_leads_to_every_page_of_the_docs() -> None:
    linked = {target.partition("#")[0] for page, target in links() if page == "README.md"}
    assert linked >= set(DOCS) - {"README.md"}


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 250


@pytest.mark.parametrize("page", ["README.md", "docs/architecture.md"])
def test_the_tree_names_exactly_the_rooms(page: str) -> None:
    named = [match[1] for line in tree_of(page) if (match := re.match(r"  (\w+)/ ", line))]
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert sorted(named) == sorted(rooms)


def test_every_file_of_the_tree_is_where_the_tree_has_it() -> None:
    room = PACKAGE
    for line in tree_of("docs/architecture.md"):
        if match := re.match(r"  (\w+)/ ", line):
            room = PACKAGE / match[1]
            continue
        for name in re.match(r" *((?:[\w-]+\.py ?)*)", line)[1].split():  # pyright: ignore[reportOptionalSubscript]
            assert (room if line.startswith("    ") else PACKAGE).joinpath(name).is_file(), line


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_the_text_names_is_there(page: str) -> None:
    roots = [ROOT, PACKAGE, (ROOT / page).parent]
    for name in spans(page):
        if re.fullmatch(r"[\w.]+(/[\w.-]+)*/[\w-]+\.py", name):
            assert any((root / name).is_file() for root in roots), name
        elif page == "docs/architecture.md" and re.fullmatch(r"\w+\.py", name) and name != "modeling_helium.py":
            assert (PACKAGE / name).is_file(), name


def test_the_marked_commands_are_one_line_each() -> None:
    for marker in ("command-1", "command-2"):
        following = README.partition(f"<!-- {marker} -->\n```sh\n")[2]
        assert following.startswith("python3 -m venv")
        assert following.partition("\n")[2].startswith("```")


def test_the_demo_is_at_most_4_megabytes() -> None:
    assert sum(path.stat().st_size for path in DEMO_DIRECTORY.rglob("*") if path.is_file()) <= 4_000_000
