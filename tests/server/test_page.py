"""The page in a real browser: Debian's Chromium, driven by Playwright. What is waited for are states of the page."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from served import Served, serving

from helium_mlx.engine.engine import HeliumEngine

playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright  # noqa: E402

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not here: apt-get install chromium")

BEGINNING = "Es war einmal ein"
NEXT = " Junge,"
expect.set_options(timeout=60_000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as driver:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def problems() -> list[str]:
    return []


@pytest.fixture
def opened(browser: Browser, server: Served, problems: list[str]) -> Iterator[Callable[..., Page]]:
    """Opens a page, by default of a browser without documents; in the end none has complained."""
    contexts = []

    def open_page(of: Page | None = None, **options: object) -> Page:
        context = of.context if of else browser.new_context(**options)  # pyright: ignore[reportArgumentType]
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(f"http://127.0.0.1:{server.port}/")
        expect(page.locator("html[data-ready]")).to_be_attached()
        return page

    yield open_page
    for context in dict.fromkeys(contexts):
        context.close()
    assert problems == []


def text_of(page: Page) -> str:
    return page.locator("#text").input_value()


def write(page: Page, text: str) -> None:
    page.locator("#text").focus()
    page.keyboard.type(text)


def saved(page: Page) -> None:
    expect(page.locator("#saved")).to_have_text("Saved in this browser")


def test_a_suggestion_is_taken_whole_by_a_word_or_not_at_all(opened: Callable[..., Page]) -> None:
    page = opened()
    write(page, BEGINNING)
    ghost = page.locator("#ghost")
    expect(ghost).to_have_text(re.compile(f"^{BEGINNING}{NEXT} der"))
    page.keyboard.press("Escape")
    expect(ghost).to_be_empty()
    assert text_of(page) == BEGINNING
    write(page, " ")
    page.keyboard.press("Backspace")
    expect(ghost).to_contain_text(NEXT)
    page.keyboard.press("Control+ArrowRight")
    expect(page.locator("#text")).to_have_value(BEGINNING + NEXT)
    expect(ghost).to_contain_text(" der")
    page.keyboard.press("Tab")
    expect(page.locator("#text")).to_have_value(re.compile(f"^{BEGINNING}{NEXT} der "))
    expect(page.locator("#text")).to_be_focused()


def test_without_a_suggestion_tab_moves_on(opened: Callable[..., Page]) -> None:
    page = opened()
    page.locator("#suggest").uncheck()
    write(page, BEGINNING)
    page.keyboard.press("Tab")
    expect(page.locator("#text")).not_to_be_focused()
    assert text_of(page) == BEGINNING


def test_tokens_are_coloured_and_an_alternative_goes_on_from_there(opened: Callable[..., Page]) -> None:
    page = opened()
    write(page, "Once upon a time there was a boy. — 😀 Es war")
    page.locator("#colour").check()
    spans = page.locator("#layer span")
    expect(spans.first).to_be_attached()
    expect(page.locator("#layer")).to_have_text("Once upon a time there was a boy. — 😀 Es war")
    assert {span.split()[0] for span in spans.evaluate_all("spans => spans.map(s => s.className)")} > {"p7"}
    expect(page.locator("#perplexity")).to_have_text(re.compile(r"^Perplexity [\d.]+ a token$"))
    # With the keyboard: the cursor into "boy".
    page.locator("#text").focus()
    page.keyboard.press("Home")
    for _ in range(30):
        page.keyboard.press("ArrowRight")
    expect(page.locator("#token-title")).to_have_text(re.compile(r"^␣bo had .*, number \d+$"))
    page.locator("#length").fill("5")
    page.locator("#alternatives button", has_text="␣gi").click()
    expect(page.locator("#text")).to_have_value(re.compile(r"^Once upon a time there was a gi\w+ "))
    expect(page.locator("#tree button[aria-current]")).to_have_text(re.compile("^gi|^girl"))
    expect(page.locator("#tree > li")).to_have_count(1)


def test_the_mouse_over_a_token_shows_what_else_there_was(opened: Callable[..., Page]) -> None:
    page = opened()
    write(page, "Once upon a time")
    page.locator("#colour").check()
    expect(page.locator("#layer span").first).to_be_attached()
    box = page.locator("#layer span", has_text="pon").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(page.locator("#token-title")).to_have_text(re.compile("^pon had "))
    expect(page.locator("#alternatives li")).not_to_have_count(0)


def test_ways_on_are_branches_and_undo_goes_back(opened: Callable[..., Page]) -> None:
    page = opened()
    write(page, BEGINNING)
    page.locator("#seed").fill("3")
    page.locator("#count").select_option("4")
    page.locator("#text").focus()
    page.keyboard.press("Control+Shift+Enter")
    takes = page.locator("#choices button:not(:disabled)")
    expect(takes).to_have_count(4)
    texts = page.locator("#choices p").all_text_contents()
    assert len(set(texts)) > 1
    expect(takes.first).to_be_focused()
    page.keyboard.press("2")
    expect(page.locator("#choices li")).to_have_count(0)
    assert text_of(page).endswith(texts[1])
    expect(page.locator("#tree > li > ul > li")).to_have_count(4)
    page.locator("#tree > li > .row button").first.click()
    expect(page.locator("#text")).to_have_value(BEGINNING)
    page.locator("#undo").click()
    expect(page.locator("#text")).not_to_have_value(BEGINNING)
    assert text_of(page).endswith(texts[1])
    page.keyboard.press("Control+Shift+z")
    expect(page.locator("#text")).to_have_value(BEGINNING)


def test_typing_is_undone_and_done_again(opened: Callable[..., Page]) -> None:
    page = opened()
    page.locator("#suggest").uncheck()
    write(page, "one two")
    page.keyboard.press("Control+z")
    expect(page.locator("#text")).to_have_value("")
    page.keyboard.press("Control+y")
    expect(page.locator("#text")).to_have_value("one two")


def test_continuing_can_be_stopped_and_speed_is_shown(opened: Callable[..., Page]) -> None:
    page = opened()

    def without_end(route: Route) -> None:
        asked = json.loads(route.request.post_data or "")
        route.continue_(post_data=json.dumps({**asked, "ignore_eos": True}))

    page.route("**/v1/completions", without_end)
    write(page, BEGINNING)
    page.locator("#length").fill("2000")
    page.locator("#continue").click()
    expect(page.locator("#speed")).to_have_text(re.compile(r"^\d+ tokens/s$"))
    page.locator("#stop").click()
    expect(page.locator("#continue")).to_be_enabled()
    assert len(text_of(page)) > len(BEGINNING)
    expect(page.locator("#tokens")).to_have_text(re.compile(r"^[\d,]+ of 4,096 tokens"))


def test_a_document_outlives_the_page(opened: Callable[..., Page]) -> None:
    page = opened()
    write(page, "Kept für immer 😀\nzweite Zeile")
    page.locator("#name").fill("A name")
    page.locator("#length").fill("17")
    saved(page)
    page.reload()
    expect(page.locator("#text")).to_have_value("Kept für immer 😀\nzweite Zeile")
    expect(page.locator("#length")).to_have_value("17")
    expect(page.locator("#documents option:checked")).to_have_text("A name")
    page.locator("#new").click()
    expect(page.locator("#text")).to_have_value("")
    page.locator("#documents").select_option(label="A name")
    expect(page.locator("#text")).to_have_value("Kept für immer 😀\nzweite Zeile")


def test_what_is_exported_can_be_imported(opened: Callable[..., Page], tmp_path: Path) -> None:
    page = opened()
    page.locator("#suggest").uncheck()
    write(page, BEGINNING)
    page.locator("#branch").click()
    expect(page.locator("#choices button:not(:disabled)")).to_have_count(3)
    page.locator("#name").fill("Tree")
    page.get_by_text("File", exact=True).click()
    with page.expect_download() as download:
        page.locator("#export-json").click()
    download.value.save_as(tmp_path / "tree.json")
    exported = json.loads((tmp_path / "tree.json").read_text(encoding="utf-8"))
    assert (exported["format"], exported["name"], len(exported["nodes"])) == ("helium-document", "Tree", 4)
    page.get_by_text("File", exact=True).click()
    with page.expect_download() as download:
        page.locator("#export-text").click()
    download.value.save_as(tmp_path / "tree.txt")
    assert (tmp_path / "tree.txt").read_text(encoding="utf-8") == BEGINNING

    other = opened()
    other.locator("#file").set_input_files(tmp_path / "tree.json")
    expect(other.locator("#text")).to_have_value(BEGINNING)
    expect(other.locator("#tree > li > ul > li")).to_have_count(3)
    expect(other.locator("#name")).to_have_value("Tree")
    other.locator("#file").set_input_files(tmp_path / "tree.txt")
    expect(other.locator("#name")).to_have_value("tree")
    (tmp_path / "wrong.json").write_text('{"format": "other", "nodes": {}}')
    other.locator("#file").set_input_files(tmp_path / "wrong.json")
    expect(other.locator("#status")).to_have_text("Not imported: wrong.json is no document of this page")
    expect(other.locator("#text")).to_have_value(BEGINNING)


def test_two_tabs_lose_nothing(opened: Callable[..., Page]) -> None:
    first = opened()
    first.locator("#suggest").uncheck()
    write(first, "Shared. ")
    saved(first)
    second = opened(first)
    expect(second.locator("#text")).to_have_value("Shared. ")
    # What one tab writes while the other rests appears there.
    write(second, "From the second. ")
    saved(second)
    expect(first.locator("#text")).to_have_value("Shared. From the second. ")
    # Both at once: each keeps its own, and what the other had is a branch.
    for page, words in ((first, "AAA"), (second, "BBB")):
        page.locator("#text").evaluate(
            "(area, words) => { area.value += words; area.dispatchEvent(new Event('input')); }", words
        )
    for page in (first, second):
        saved(page)
    first.reload()
    expect(first.locator("html[data-ready]")).to_be_attached()
    buttons = first.locator("#tree button:not([aria-label])")
    shown = [text_of(first)]
    for index in range(buttons.count()):
        buttons.nth(index).click()
        shown.append(text_of(first))
    for words in ("AAA", "BBB"):
        assert any(words in text for text in shown), shown


def test_without_the_server_the_text_stays_and_it_goes_on_later(
    browser: Browser, engine: HeliumEngine, problems: list[str]
) -> None:
    context = browser.new_context()
    page = context.new_page()
    with serving(engine) as server:
        page.goto(f"http://127.0.0.1:{server.port}/")
        expect(page.locator("html[data-ready]")).to_be_attached()
        write(page, BEGINNING)
        expect(page.locator("#ghost")).to_contain_text(NEXT)
        context.set_offline(True)
        write(page, " x")
        page.keyboard.press("Backspace")
        page.keyboard.press("Backspace")
        expect(page.locator("#status")).to_contain_text("The server does not answer")
        expect(page.locator("#ghost")).to_be_empty()
        saved(page)
        context.set_offline(False)
        expect(page.locator("#status")).to_be_empty()
        expect(page.locator("#ghost")).to_contain_text(NEXT)
        assert text_of(page) == BEGINNING
    context.close()


def test_a_long_text_costs_a_key_no_more_than_its_paragraph(opened: Callable[..., Page]) -> None:
    page = opened()
    page.locator("#suggest").uncheck()
    words = " ".join(["Es war einmal ein kleiner Drache, der auf einem Berg wohnte und"] * 12)
    page.locator("#text").evaluate(
        "(area, words) => { area.value = Array(140).fill(0).map((_, i) => i + ' ' + words).join('\\n');"
        " area.dispatchEvent(new Event('input')); }",
        words,
    )
    assert len(text_of(page).split()) > 20_000
    # As many elements are made for a key as for one in a short text, and those drawn are those in view.
    page.evaluate(
        "() => { window.made = 0; const make = document.createElement.bind(document);"
        " document.createElement = (name) => { window.made += 1; return make(name); }; }"
    )
    page.locator("#text").focus()
    page.keyboard.press("Control+End")
    page.keyboard.type("schnell")
    expect(page.locator("#text")).to_have_value(re.compile("undschnell$"))
    assert page.evaluate("window.made") < 200
    # The sheet is as high as the text, which therefore does not scroll inside.
    assert page.locator("#text").evaluate("area => area.scrollHeight - area.clientHeight") <= 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1000, 400])
def test_nothing_shuts_anybody_out(opened: Callable[..., Page], scheme: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python")
    page = opened(color_scheme=scheme, viewport={"width": width, "height": 800}, bypass_csp=True)
    write(page, BEGINNING)
    page.locator("#colour").check()
    expect(page.locator("#layer span").first).to_be_attached()
    page.locator("#branch").click()
    expect(page.locator("#choices button:not(:disabled)")).to_have_count(3)
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    # Nothing is cut off at the side.
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator("#help").click()
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
