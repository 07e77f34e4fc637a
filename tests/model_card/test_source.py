from dataclasses import replace
from pathlib import Path

import pytest
from card_samples import CARD_OF_1_2B, HELIUM_1_2B, PREVIEW, TINY

from helium_mlx.checkpoint.config import HeliumConfig
from helium_mlx.errors import CheckpointError
from helium_mlx.model_card.source import (
    FAMILIES,
    GEMMA_NOTICE,
    copy_licences,
    licence_files,
    licence_section,
    read_source,
)


def card(directory: Path, text: str) -> Path:
    (directory / "README.md").write_text(text)
    return directory


def test_licence_and_languages_are_kept_and_nothing_else(tmp_path: Path) -> None:
    source = read_source(card(tmp_path, CARD_OF_1_2B), TINY, {})
    assert source.metadata == {"license": "cc-by-sa-4.0", "language": ["bg", "cs"]}


def test_terms_that_only_the_text_names_are_kept(tmp_path: Path) -> None:
    source = read_source(card(tmp_path, CARD_OF_1_2B), TINY, {})
    assert source.is_under_gemma_terms
    section = "\n".join(licence_section(source))
    assert "CC-BY-SA 4.0" in section
    assert "https://ai.google.dev/gemma/terms" in section
    assert "> **Terms of use:** Distilled from Gemma 2, so subject to the Gemma Terms of Use" in section


@pytest.mark.parametrize(
    ("front_matter", "expected"),
    [
        ("license: other\nlicense_name: my-licence\nlicense_link: LICENSE", ["other", "my-licence", "LICENSE"]),
        ("license:\n- cc-by-sa-4.0\n- gemma", [["cc-by-sa-4.0", "gemma"]]),
        ("license: [mit, gemma]", [["mit", "gemma"]]),
        ("license: other\nlicense_details: |\n  two\n  lines\n", ["other", "two\nlines\n"]),
        ("license: >-\n  cc-by-4.0", ["cc-by-4.0"]),
        ("other: |\n  license: not this\nlicense: 'mit'", ["mit"]),
    ],
)
def test_every_way_to_write_a_licence_is_understood(tmp_path: Path, front_matter: str, expected: list[object]) -> None:
    source = read_source(card(tmp_path, f"---\n{front_matter}\n---\n# x\n"), TINY, {})
    assert list(source.metadata.values()) == expected


def test_line_ends_of_windows_are_understood(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"---\r\nlicense: mit\r\n---\r\n# x\r\n")
    assert read_source(tmp_path, TINY, {}).metadata == {"license": "mit"}


def test_a_code_that_yaml_takes_for_something_else_stays_text(tmp_path: Path) -> None:
    source = read_source(card(tmp_path, "---\nlanguage:\n- no\n- en\nlicense: 0\n---\n"), TINY, {})
    assert source.metadata == {"language": ["no", "en"], "license": "0"}


@pytest.mark.parametrize(
    "front_matter", ["license: [", "- a list", "a: &a [*a", "x: " + "[" * 1_500, "x: y\n" * 20_000]
)
def test_metadata_that_cannot_be_read_is_said(tmp_path: Path, front_matter: str) -> None:
    source = read_source(card(tmp_path, f"---\n{front_matter}\n---\n"), TINY, {})
    assert source.problem is not None
    assert "look its licence up" in source.problem


@pytest.mark.parametrize("value", ["{a: b}", "*bomb", "[[a]]"])
def test_a_licence_that_is_neither_text_nor_a_list_is_no_licence(tmp_path: Path, value: str) -> None:
    # Written out, 10^20 letters.
    levels = ["l0: &l0 [a]", *(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 21))]
    bomb = "\n".join([*levels, "bomb: &bomb [*l20]"])
    source = read_source(card(tmp_path, f"---\n{bomb}\nlicense: {value}\n---\n"), TINY, {})
    assert source.metadata == {}
    assert source.problem is not None


def test_what_a_card_says_is_short_and_stays_on_its_line(tmp_path: Path) -> None:
    text = (
        "---\nlicense: other\nlicense_name: |\n  a\n  # b\n---\n"
        + "gemma terms\n" * 99
        + "gemma "
        + "x" * 999
        + " terms"
    )
    section = "\n".join(licence_section(read_source(card(tmp_path, text), TINY, {})))
    assert "\n# b" not in section
    assert section.count("gemma terms") == 5


def test_a_directory_without_a_card_has_no_licence(tmp_path: Path) -> None:
    source = read_source(tmp_path, TINY, {})
    assert (source.metadata, source.problem, source.repository) == ({}, None, None)
    assert "name no licence" in licence_section(source)[0]


@pytest.mark.parametrize(
    ("config", "licence", "languages", "is_under_gemma_terms"),
    [(PREVIEW, "cc-by-4.0", 6, False), (HELIUM_1_2B, "cc-by-sa-4.0", 24, True)],
)
def test_a_published_model_that_lost_its_card_is_known_by_its_shape(
    tmp_path: Path, config: HeliumConfig, licence: str, languages: int, is_under_gemma_terms: bool
) -> None:
    source = read_source(tmp_path, config, {})
    assert source.metadata["license"] == licence
    assert len(source.metadata["language"]) == languages  # pyright: ignore[reportArgumentType]
    assert source.is_under_gemma_terms == is_under_gemma_terms


def test_another_shape_is_no_published_model(tmp_path: Path) -> None:
    assert read_source(tmp_path, replace(HELIUM_1_2B, vocab_size=64001), {}).family is None


@pytest.mark.parametrize("name", ["helium-1-2b", "helium-1-2b-books", "helium-1-2b-stem"])
def test_a_specialist_is_known_by_its_name(tmp_path: Path, name: str) -> None:
    directory = tmp_path / f"models--kyutai--{name}" / "snapshots" / "0123"
    directory.mkdir(parents=True)
    source = read_source(directory, TINY, {})
    assert (source.repository, source.is_exact) == (f"kyutai/{name}", True)
    assert source.family is FAMILIES[1]


def test_the_card_wins_over_what_is_known_of_the_family(tmp_path: Path) -> None:
    source = read_source(card(tmp_path, "---\nlicense: mit\nlanguage: fr\n---\n"), HELIUM_1_2B, {})
    assert source.metadata == {"license": "mit", "language": "fr"}
    assert source.is_under_gemma_terms


def test_a_conversion_of_ours_hands_its_origin_on_while_its_files_are_the_recorded(tmp_path: Path) -> None:
    record = '{"source": "somebody/helium", "revision": "0123", "files": {"model.safetensors": "aa"}}'
    (tmp_path / "conversion.json").write_text(record)
    assert read_source(tmp_path, TINY, {"model.safetensors": "aa"}).repository == "somebody/helium"
    assert read_source(tmp_path, TINY, {"model.safetensors": "bb"}).repository is None
    assert read_source(tmp_path, TINY, {}).repository is None


def test_what_a_config_names_as_its_origin_may_be_an_ancestor_only(tmp_path: Path) -> None:
    config = replace(TINY, extra={"_name_or_path": "kyutai/helium-1-preview-2b"})
    source = read_source(tmp_path, config, {})
    assert (source.repository, source.is_exact) == ("kyutai/helium-1-preview-2b", False)
    assert read_source(tmp_path, replace(TINY, extra={"_name_or_path": "/home/alice/x"}), {}).repository is None


def test_licence_files_go_along(tmp_path: Path) -> None:
    source, destination = tmp_path / "source", tmp_path / "destination"
    source.mkdir()
    destination.mkdir()
    for name in ("LICENSE", "LICENCE.txt", "NOTICE.md", "LICENSES.py.zip", "notes.txt", "licensed.py"):
        (source / name).write_text(name)
    copy_licences(source, TINY, destination)
    assert sorted(p.name for p in destination.iterdir()) == ["LICENCE.txt", "LICENSE", "LICENSES.py.zip", "NOTICE.md"]


def test_the_notice_that_the_gemma_terms_ask_for_is_written(tmp_path: Path) -> None:
    source, destination = tmp_path / "source", tmp_path / "destination"
    source.mkdir()
    destination.mkdir()
    copy_licences(source, HELIUM_1_2B, destination)
    assert (destination / "NOTICE").read_text() == GEMMA_NOTICE
    (source / "NOTICE").write_text("theirs")
    copy_licences(source, HELIUM_1_2B, destination)
    assert (destination / "NOTICE").read_text() == "theirs"


def test_a_licence_that_links_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "secret").write_text("x")
    (tmp_path / "source" / "LICENSE").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match="outside of the checkpoint"):
        licence_files(tmp_path / "source")


UNPARSABLE = {
    "a character that there cannot be": 'license: "\\U00110000"',
    "a character beyond C's numbers": 'license: "\\UFFFFFFFF"',
    "a version of 5,000 digits": f"%YAML 1.{'1' * 5000}\nlicense: mit",
    "brackets in brackets": "[" * 19_000,
    "braces in braces": "{" * 19_000,
    "lists in lists": "- " * 9_000,
    "a control character": "license: \x01",
    "an alias of nothing": "license: *x",
    "an alias within itself": "a: &a [*a]",
    "a list as a key": "? [a]\n: b",
}


@pytest.mark.parametrize("front_matter", UNPARSABLE.values(), ids=UNPARSABLE)
def test_metadata_that_yaml_cannot_read_is_a_problem_of_the_card(tmp_path: Path, front_matter: str) -> None:
    source = read_source(card(tmp_path, f"---\n{front_matter}\n---\n# x\n"), TINY, {})
    assert source.metadata == {}
    assert source.problem is not None
    assert source.problem.startswith("the metadata of the source's card cannot be read")


def test_half_a_character_in_metadata_becomes_a_card(tmp_path: Path) -> None:
    source = read_source(card(tmp_path, '---\nlicense: "\\ud800"\n---\n'), TINY, {})
    "\n".join(licence_section(source)).encode()


@pytest.mark.parametrize(
    "name", ["chat_template.jinja", "chat_template.json", "additional_chat_templates/tools.jinja", None]
)
def test_a_chat_template_is_seen_wherever_transformers_saves_it(tmp_path: Path, name: str | None) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": null}')
    assert not read_source(tmp_path, TINY, {}).has_chat_template
    if name is None:
        (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    else:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{{ messages }}")
    assert read_source(tmp_path, TINY, {}).has_chat_template
