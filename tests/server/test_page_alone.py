"""The page in Debian's Chromium, driven by Playwright, before a stand-in for the server. States are waited for."""

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from page_standin import CONTEXT, StandIn, continuation, likeliest, standing_in, tokens_of
from waiting import LONGEST_WAIT, wait_for

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not here: pip install playwright")
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright  # noqa: E402

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not here: apt-get install chromium")

WAIT = LONGEST_WAIT * 1000
BEGINNING = "The old captain"
# What the stand-in suggests.
WORDS = list(continuation(BEGINNING, {"temperature": 0, "max_tokens": 8}, 0))
expect.set_options(timeout=WAIT)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as driver:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def server() -> Iterator[StandIn]:
    with standing_in() as server:
        yield server


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context()
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext, server: StandIn) -> Iterator[Page]:
    """A new page of a browser without documents, which has complained of nothing in the end."""
    complaints = []
    page = opened(context, server, complaints)
    yield page
    assert complaints == []


def opened(context: BrowserContext, server: StandIn, complaints: list[str] | None = None) -> Page:
    page = context.new_page()
    page.set_default_timeout(WAIT)
    if complaints is not None:
        page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(server.address)
    expect(page.locator("html[data-ready]")).to_be_attached()
    return page


def write(page: Page, text: str) -> None:
    page.locator("#text").focus()
    page.keyboard.type(text)


def put(page: Page, text: str) -> None:
    """Put a whole text there at once, with the caret behind it."""
    page.locator("#text").evaluate(
        "(area, text) => { area.value = text; area.dispatchEvent(new Event('input')); }", text
    )
    page.locator("#text").focus()
    page.keyboard.press("Control+Home")
    page.keyboard.press("Control+End")


def text_of(page: Page) -> str:
    return page.locator("#text").input_value()


def saved(page: Page) -> None:
    expect(page.locator("#saved")).to_have_text("Saved in this browser")


def coloured(page: Page) -> None:
    page.locator("#colour").check()
    expect(page.locator("#layer span").first).to_be_attached()


def ways_on(page: Page, count: int) -> list[str]:
    """Ask for several continuations, and return the texts of all, the first of which can be taken."""
    page.locator("#count").select_option(str(count))
    page.locator("#text").focus()
    page.keyboard.press("Control+Shift+Enter")
    expect(page.locator("#choices button:not(:disabled)")).to_have_count(count)
    return page.locator("#choices p").all_text_contents()


# --- ghost text


def test_a_pause_brings_ghost_text_that_tab_takes(page: Page) -> None:
    write(page, BEGINNING)
    expect(page.locator("#ghost")).to_have_text(BEGINNING + "".join(WORDS))
    page.keyboard.press("Tab")
    expect(page.locator("#text")).to_have_value(BEGINNING + "".join(WORDS))
    expect(page.locator("#text")).to_be_focused()


def test_a_screen_reader_hears_the_suggestion_once_it_is_whole(page: Page) -> None:
    write(page, BEGINNING)
    expect(page.locator("#heard")).to_have_text("Suggested: " + "".join(WORDS))
    page.keyboard.press("Escape")
    expect(page.locator("#heard")).to_be_empty()


def test_control_and_right_takes_a_word_of_it(page: Page) -> None:
    write(page, BEGINNING)
    expect(page.locator("#ghost")).to_contain_text(WORDS[-1])
    for count in (1, 2):
        page.keyboard.press("Control+ArrowRight")
        expect(page.locator("#text")).to_have_value(BEGINNING + "".join(WORDS[:count]))
        expect(page.locator("#ghost")).to_contain_text("".join(WORDS[count:]))


def test_escape_drops_it_and_tab_then_moves_on(page: Page) -> None:
    write(page, BEGINNING)
    expect(page.locator("#ghost")).to_contain_text(WORDS[-1])
    page.keyboard.press("Escape")
    expect(page.locator("#ghost")).to_be_empty()
    page.keyboard.press("Tab")
    expect(page.locator("#text")).not_to_be_focused()
    assert text_of(page) == BEGINNING


def test_ghost_text_streams_and_the_next_key_ends_the_request(page: Page, server: StandIn) -> None:
    server.gate.clear()
    write(page, BEGINNING)
    # The first word is there, though the answer is not whole.
    expect(page.locator("#ghost")).to_have_text(BEGINNING + WORDS[0])
    write(page, ",")
    expect(page.locator("#ghost")).to_be_empty()
    wait_for(lambda: server.hung_up == 1)
    server.gate.set()
    expect(page.locator("#ghost")).to_contain_text(BEGINNING + ",")
    prompts = [body["prompt"] for body in server.asked("/v1/suggestions")]
    assert prompts == [BEGINNING, BEGINNING + ","]


def test_with_fingers_it_is_taken_by_buttons(browser: Browser, server: StandIn) -> None:
    context = browser.new_context(has_touch=True, is_mobile=True, viewport={"width": 400, "height": 800})
    page = opened(context, server)
    write(page, BEGINNING)
    page.locator("#take-word").tap()
    expect(page.locator("#text")).to_have_value(BEGINNING + WORDS[0])
    page.locator("#take").tap()
    expect(page.locator("#text")).to_have_value(BEGINNING + "".join(WORDS))
    expect(page.locator("#text")).to_be_focused()
    expect(page.locator("#take")).to_be_hidden()
    context.close()


def test_who_wants_no_suggestions_gets_none(page: Page, server: StandIn) -> None:
    page.locator("#suggest").uncheck()
    write(page, BEGINNING)
    expect(page.locator("#tokens")).to_have_text(f"{len(tokens_of(BEGINNING)) + 1} of 4,096 tokens")
    assert server.asked("/v1/suggestions") == []
    saved(page)
    page.reload()
    expect(page.locator("html[data-ready]")).to_be_attached()
    expect(page.locator("#suggest")).not_to_be_checked()


# --- going on


def test_continuing_is_asked_for_as_the_settings_say(page: Page, server: StandIn) -> None:
    page.locator("#suggest").uncheck()
    write(page, BEGINNING)
    page.locator("#length").fill("7")
    page.locator("#seed").fill("5")
    page.locator("#temperature").fill("0.3")
    page.locator("#top-p").fill("0.5")
    page.locator("#end").fill("\\n\\n")
    page.locator("#text").focus()
    page.keyboard.press("Control+Enter")
    expected = BEGINNING + "".join(continuation(BEGINNING, {"seed": 5, "temperature": 0.3, "max_tokens": 7}, 0))
    expect(page.locator("#text")).to_have_value(expected)
    (asked,) = server.asked("/v1/completions")
    wanted = {"prompt": BEGINNING, "max_tokens": 7, "seed": 5, "temperature": 0.3, "top_p": 0.5, "stop": ["\n\n"]}
    assert wanted.items() <= asked.items()


def test_writing_can_be_stopped_and_its_speed_is_shown(page: Page, server: StandIn) -> None:
    server.pace = 0.02
    write(page, BEGINNING)
    page.locator("#length").fill("2000")
    page.locator("#continue").click()
    expect(page.locator("#speed")).to_have_text(re.compile(r"^\d+ tokens/s$"))
    page.keyboard.press("Escape")
    expect(page.locator("#continue")).to_be_enabled()
    wait_for(lambda: server.hung_up >= 1)
    assert text_of(page) > BEGINNING


def test_several_ways_on_stand_side_by_side_and_one_is_taken(page: Page) -> None:
    write(page, BEGINNING)
    texts = ways_on(page, 4)
    assert len(set(texts)) == 4
    expect(page.locator("#choices button").first).to_be_focused()
    page.keyboard.press("2")
    expect(page.locator("#text")).to_have_value(re.compile(f"^{BEGINNING}.*{re.escape(texts[1].strip())}$", re.DOTALL))
    # All four are kept below what they continue; going back is a click, and is undone.
    expect(page.locator("#tree button[aria-current]")).to_have_count(1)
    page.locator("#tree button", has_text=BEGINNING).click()
    expect(page.locator("#text")).to_have_value(BEGINNING)
    page.keyboard.press("Control+z")
    expect(page.locator("#text")).to_have_value(re.compile(re.escape(texts[1].strip()) + "$"))
    page.keyboard.press("Control+Shift+z")
    expect(page.locator("#text")).to_have_value(BEGINNING)


def test_from_the_middle_of_a_text_a_branch_begins_and_the_text_stays(page: Page) -> None:
    whole = BEGINNING + " opened the door"
    put(page, whole)
    for _ in " opened the door":
        page.keyboard.press("ArrowLeft")
    page.locator("#length").fill("3")
    page.locator("#text").focus()
    page.keyboard.press("Control+Enter")
    expect(page.locator("#continue")).to_be_enabled()
    expect(page.locator("#text")).not_to_have_value(whole)
    assert text_of(page).startswith(BEGINNING)
    page.locator("#tree button", has_text="opened the door").click()
    expect(page.locator("#text")).to_have_value(whole)


def test_typing_is_undone_and_done_again(page: Page) -> None:
    page.locator("#suggest").uncheck()
    write(page, "one two")
    page.keyboard.press("Control+z")
    expect(page.locator("#text")).to_have_value("")
    page.keyboard.press("Control+y")
    expect(page.locator("#text")).to_have_value("one two")


def test_a_branch_that_was_removed_comes_back_by_undo(page: Page) -> None:
    write(page, BEGINNING)
    ways_on(page, 3)
    expect(page.locator("#tree li")).to_have_count(4)
    page.locator("#tree button[aria-label^='Remove']").first.click()
    expect(page.locator("#tree li")).to_have_count(3)
    saved(page)
    expect(page.locator("#text")).to_be_focused()
    page.keyboard.press("Control+z")
    expect(page.locator("#tree li")).to_have_count(4)
    page.keyboard.press("Control+Shift+z")
    expect(page.locator("#tree li")).to_have_count(3)
    saved(page)
    page.reload()
    expect(page.locator("#tree li")).to_have_count(3)


def test_a_number_that_there_is_not_changes_nothing(page: Page, server: StandIn) -> None:
    write(page, BEGINNING)
    page.locator("#length").fill("3")
    page.locator("#length").fill("5000")
    page.locator("#text").focus()
    page.keyboard.press("Control+Enter")
    wait_for(lambda: server.asked("/v1/completions"))
    assert server.asked("/v1/completions")[0]["max_tokens"] == 3


# --- what the model thinks


def test_every_token_is_coloured_and_the_caret_shows_what_else_there_was(page: Page) -> None:
    text = "The old 😀 captain — zyx"
    put(page, text)
    coloured(page)
    expect(page.locator("#layer")).to_have_text(text)
    assert page.locator("#layer span").all_text_contents() == tokens_of(text)
    expect(page.locator("#perplexity")).to_have_text(re.compile(r"^Perplexity [\d.]+"))
    page.locator("#text").focus()
    page.keyboard.press("Control+End")
    expect(page.locator("#token-title")).to_have_text(re.compile("^␣zyx had .*, below the ten likeliest$"))
    expect(page.locator("#alternatives button")).to_have_count(10)
    page.keyboard.press("Control+Home")
    expect(page.locator("#token-title")).to_have_text(re.compile("^The had "))


def test_a_space_that_the_tokenizer_puts_before_a_line_moves_no_token(page: Page) -> None:
    tokens = page.evaluate(
        """async () => {
            const { tokensOf } = await import("/page/thoughts.js");
            const text = "a\\n😀 b\\nc d";
            const listed = {
                tokens: ["a", "\\n", " 😀", " b", "\\n", " ", "c", " d"],
                text_offset: [0, 1, 2, 4, 6, 7, 8, 9],
                token_logprobs: [-1, -1, -1, -1, -1, -1, -1, -1],
            };
            return tokensOf(listed, text, 0).map(({ start, end }) => text.slice(start, end));
        }"""
    )
    assert tokens == ["a", "\n", "😀", " b", "\n", "", "c", " d"]


def test_what_is_typed_while_tokens_are_asked_about_is_coloured_too(page: Page, server: StandIn) -> None:
    put(page, BEGINNING)
    coloured(page)
    server.gate.clear()
    write(page, " a")
    wait_for(lambda: any(body.get("echo") and body["prompt"].endswith(" a") for _, body in list(server.requests)))
    write(page, "b")
    server.gate.set()
    expect(page.locator("#layer span").last).to_have_text(" ab")


def test_the_mouse_shows_it_too_and_a_click_goes_on_from_an_alternative(page: Page) -> None:
    whole = BEGINNING + " opened the door"
    put(page, whole)
    coloured(page)
    box = page.locator("#layer span", has_text="opened").bounding_box()
    assert box is not None
    place = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*place)
    expect(page.locator("#token-title")).to_have_text(re.compile("^␣opened had "))
    # On its way to the alternatives the mouse is over other tokens.
    page.mouse.move(5, 5)
    expect(page.locator("#token-title")).to_have_text(re.compile("^␣door had "))
    page.mouse.click(*place)
    page.mouse.move(5, 5)
    expect(page.locator("#token-title")).to_have_text(re.compile("^␣opened had "))
    page.locator("#length").fill("3")
    second = list(likeliest(" captain"))[1]
    page.locator("#alternatives button").nth(1).click()
    expect(page.locator("#text")).to_have_value(re.compile(f"^{BEGINNING}{re.escape(second)}.+", re.DOTALL))
    expect(page.locator("#continue")).to_be_enabled()
    expect(page.locator("#text")).to_be_focused()
    page.locator("#tree button", has_text="opened the door").click()
    expect(page.locator("#text")).to_have_value(whole)


def test_the_keyboard_goes_to_an_alternative_and_back(page: Page) -> None:
    put(page, BEGINNING)
    coloured(page)
    page.locator("#text").focus()
    page.keyboard.press("Control+.")
    expect(page.locator("#alternatives button").first).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#text")).to_be_focused()
    assert text_of(page) == BEGINNING
    page.keyboard.press("Control+.")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    second = list(likeliest(" old"))[1]
    expect(page.locator("#text")).to_have_value(re.compile(f"^The old{re.escape(second)}.+", re.DOTALL))


# --- documents


def test_a_browser_that_keeps_nothing_is_said_and_can_be_written_in(context: BrowserContext, server: StandIn) -> None:
    context.add_init_script("indexedDB.open = () => { throw new DOMException('not here', 'SecurityError'); }")
    page = opened(context, server)
    write(page, BEGINNING)
    expect(page.locator("#status")).to_have_text("Not saved: not here. Export the document.")
    expect(page.locator("#ghost")).to_contain_text(WORDS[-1])


def test_a_document_outlives_the_page(page: Page) -> None:
    write(page, "Kept — für immer 😀\nzweite Zeile")
    page.locator("#name").fill("A name")
    page.locator("#length").fill("17")
    saved(page)
    page.reload()
    expect(page.locator("#text")).to_have_value("Kept — für immer 😀\nzweite Zeile")
    expect(page.locator("#length")).to_have_value("17")
    expect(page.locator("#documents option:checked")).to_have_text("A name")
    page.locator("#new").click()
    expect(page.locator("#text")).to_have_value("")
    page.locator("#documents").select_option(label="A name")
    expect(page.locator("#text")).to_have_value("Kept — für immer 😀\nzweite Zeile")


def test_what_is_typed_right_before_the_page_goes_is_kept(page: Page) -> None:
    write(page, "Saved. ")
    saved(page)
    write(page, "Not yet.")
    page.reload()
    expect(page.locator("#text")).to_have_value("Saved. Not yet.")


def test_what_changes_while_it_is_being_saved_is_kept(page: Page) -> None:
    # The new document itself.
    saved(page)
    page.evaluate(
        """() => {
            const put = IDBObjectStore.prototype.put;
            IDBObjectStore.prototype.put = function (...given) {
                IDBObjectStore.prototype.put = put;
                const asked = put.apply(this, given);
                for (const [id, value] of [["name", "Meanwhile"], ["length", "23"], ["text", "First. Second."]]) {
                    document.getElementById(id).value = value;
                    document.getElementById(id).dispatchEvent(new Event("input"));
                }
                return asked;
            };
        }"""
    )
    write(page, "First.")
    expect(page.locator("#documents option:checked")).to_have_text("Meanwhile")
    saved(page)
    page.reload()
    expect(page.locator("#name")).to_have_value("Meanwhile")
    expect(page.locator("#length")).to_have_value("23")
    expect(page.locator("#text")).to_have_value("First. Second.")


def test_what_is_exported_can_be_imported(page: Page, browser: Browser, server: StandIn, tmp_path: Path) -> None:
    page.locator("#suggest").uncheck()
    write(page, BEGINNING)
    texts = ways_on(page, 3)
    page.locator("#name").fill("Tree")
    for kind in ("json", "text"):
        page.locator(".menu summary").click()
        with page.expect_download() as download:
            page.locator(f"#export-{kind}").click()
        download.value.save_as(tmp_path / f"tree.{kind}")
        assert download.value.suggested_filename == {"json": "Tree.json", "text": "Tree.txt"}[kind]
    exported = json.loads((tmp_path / "tree.json").read_text(encoding="utf-8"))
    assert (exported["format"], exported["name"], len(exported["nodes"])) == ("helium-document", "Tree", 4)
    assert (tmp_path / "tree.text").read_text(encoding="utf-8") == BEGINNING

    elsewhere = browser.new_context()
    other = opened(elsewhere, server)
    other.locator("#file").set_input_files(tmp_path / "tree.json")
    expect(other.locator("#name")).to_have_value("Tree")
    expect(other.locator("#text")).to_have_value(BEGINNING)
    for text in texts:
        other.locator("#tree button", has_text=text.strip()[:20]).first.click()
        expect(other.locator("#text")).to_have_value(re.compile(re.escape(text.strip()) + "$"))
    (tmp_path / "prose.txt").write_bytes(b"Erste\r\nZeile")
    other.locator("#file").set_input_files(tmp_path / "prose.txt")
    expect(other.locator("#name")).to_have_value("prose")
    expect(other.locator("#text")).to_have_value("Erste\nZeile")
    elsewhere.close()


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "null",
        '{"format": "other", "nodes": {}}',
        '{"format": "helium-document", "nodes": {}}',
        '{"format": "helium-document", "nodes": null}',
        '{"format": "helium-document", "nodes": {"a": {"text": 1}}}',
    ],
)
def test_what_is_no_document_is_said_and_changes_nothing(page: Page, tmp_path: Path, content: str) -> None:
    write(page, BEGINNING)
    (tmp_path / "wrong.json").write_text(content)
    page.locator("#file").set_input_files(tmp_path / "wrong.json")
    expect(page.locator("#status")).to_have_text(re.compile("^Not imported: "))
    assert text_of(page) == BEGINNING


def test_branches_that_stand_in_a_circle_are_imported_as_a_tree(page: Page, tmp_path: Path) -> None:
    nodes = {name: {"parent": parent, "text": f"text {name}"} for name, parent in (("a", "b"), ("b", "a"))}
    document = {"format": "helium-document", "nodes": nodes, "current": "a"}
    (tmp_path / "circle.json").write_text(json.dumps(document))
    page.locator("#file").set_input_files(tmp_path / "circle.json")
    expect(page.locator("#text")).to_have_value("text a")
    page.locator("#tree button:not([aria-label])", has_text="b").click()
    expect(page.locator("#text")).to_have_value("text b")


# --- two tabs


def test_what_one_tab_writes_appears_in_the_other(page: Page, context: BrowserContext, server: StandIn) -> None:
    write(page, "Shared. ")
    saved(page)
    second = opened(context, server)
    expect(second.locator("#text")).to_have_value("Shared. ")
    write(second, "From the second. ")
    expect(page.locator("#text")).to_have_value("Shared. From the second. ")


def test_two_tabs_that_write_at_once_lose_nothing(page: Page, context: BrowserContext, server: StandIn) -> None:
    write(page, "Shared. ")
    saved(page)
    second = opened(context, server)
    expect(second.locator("#text")).to_have_value("Shared. ")
    for round_ in range(3):
        for tab, word in ((page, f"AAA{round_}"), (second, f"BBB{round_}")):
            tab.locator("#text").evaluate(
                "(area, word) => { area.value += word; area.dispatchEvent(new Event('input')); }", word
            )
        for tab in (page, second):
            saved(tab)
    page.reload()
    expect(page.locator("html[data-ready]")).to_be_attached()
    buttons = page.locator("#tree button:not([aria-label])")
    shown = [text_of(page)]
    for index in range(buttons.count()):
        buttons.nth(index).click()
        shown.append(text_of(page))
    for word in (f"{letters}{round_}" for letters in ("AAA", "BBB") for round_ in range(3)):
        assert any(word in text for text in shown), shown


# --- the server is away


def test_a_server_that_is_away_is_said_and_nothing_is_lost(context: BrowserContext) -> None:
    with standing_in() as server:
        page = opened(context, server)
        port = server.server.server_address[1]
        write(page, BEGINNING)
        expect(page.locator("#ghost")).to_contain_text(WORDS[-1])
    write(page, " wrote")
    expect(page.locator("#status")).to_contain_text("The server does not answer")
    saved(page)
    with standing_in(port):
        expect(page.locator("#status")).to_be_empty()
        expect(page.locator("#ghost")).to_contain_text(BEGINNING + " wrote ")
        page.reload()
        expect(page.locator("#text")).to_have_value(BEGINNING + " wrote")


def test_what_the_server_refuses_is_said_in_its_words(page: Page, server: StandIn) -> None:
    page.locator("#suggest").uncheck()
    write(page, BEGINNING)
    server.status = 400
    page.locator("#continue").click()
    expect(page.locator("#status")).to_have_text("the stand-in was told to refuse this")
    assert text_of(page) == BEGINNING


# --- long texts


def test_of_a_text_beyond_the_context_its_end_is_sent(page: Page, server: StandIn) -> None:
    put(page, "\n".join(f"{number} the old captain opened the door" for number in range(CONTEXT // 4)) + "\nThe end")
    expect(page.locator("#ghost")).to_contain_text("The end ")
    expect(page.locator("#tokens")).to_have_text(re.compile("^[234],... of 4,096 tokens, the end of the text$"))
    assert server.asked("/v1/suggestions")[-1]["prompt"].endswith("\nThe end")


def test_of_a_text_beyond_the_context_every_token_is_coloured_where_it_is_in_view(page: Page, server: StandIn) -> None:
    page.locator("#suggest").uncheck()
    lines = [f"{number} the old captain opened a door" for number in range(CONTEXT // 3)]
    put(page, "\n".join(lines))
    coloured(page)
    line = page.locator("#layer p")
    expect(line.last).to_have_text(lines[-1])
    assert line.last.locator("span").all_text_contents() == tokens_of(lines[-1])
    page.locator("#text").focus()
    page.keyboard.press("Control+Home")
    expect(line.first).to_have_text(lines[0])
    for number in (0, 7):
        assert line.nth(number).locator("span").all_text_contents() == tokens_of(lines[number])
    # What precedes a change stays known.
    page.keyboard.press("Control+End")
    page.keyboard.type(" again")
    expect(line.last.locator("span").last).to_have_text(" again")
    asked = [body["prompt"] for body in server.asked("/v1/completions")]
    assert len(set(asked)) == len(asked)


TIME_KEYS = """() => {
    window.keys = [];
    new PerformanceObserver((list) => {
        for (const entry of list.getEntries()) if (entry.name === "keydown") window.keys.push(entry.duration);
    }).observe({type: "event", durationThreshold: 16});
}"""
# Each is a paragraph whose height is measured.
COUNT_MEASURED = """() => {
    window.measured = 0;
    window.counting?.disconnect();
    window.counting = new MutationObserver((changes) => {
        for (const change of changes) window.measured += change.addedNodes.length;
    });
    window.counting.observe(document.getElementById("ruler"), {childList: true});
}"""
SENTENCE = "the old captain opened the door and saw a grey river under"


@pytest.mark.parametrize("paragraph", [140, 20_000])
def test_a_key_in_twenty_thousand_words_costs_no_more_than_in_a_thousand(page: Page, paragraph: int) -> None:
    page.locator("#suggest").uncheck()
    page.locator("#colour").check()
    page.evaluate(TIME_KEYS)
    drawn = []
    for count in (1_000, 20_000):
        words = SENTENCE.split() * (count // 12)
        put(page, "\n".join(" ".join(words[at : at + paragraph]) for at in range(0, len(words), paragraph)))
        expect(page.locator("#layer span").last).to_have_text(" under")
        page.evaluate(COUNT_MEASURED)
        page.keyboard.type("slowly")
        expect(page.locator("#layer span").last).to_have_text(" underslowly")
        assert page.evaluate("window.measured") == len("slowly")
        drawn.append(page.locator("#layer span").count())
        print(f"{count} words, keys slower than 16 ms:", page.evaluate("window.keys.splice(0)"))
    assert drawn[1] < 1.5 * drawn[0]
    # The sheet is as high as its text, which therefore does not scroll inside.
    assert page.locator("#text").evaluate("area => area.scrollHeight - area.clientHeight") <= 2


# --- for everybody


def test_nothing_is_fetched_from_elsewhere_or_against_the_policy(context: BrowserContext, server: StandIn) -> None:
    page = context.new_page()
    asked, said = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.goto(server.address)
    expect(page.locator("html[data-ready]")).to_be_attached()
    write(page, BEGINNING)
    expect(page.locator("#ghost")).to_contain_text(WORDS[-1])
    assert all(url.startswith(server.address) for url in asked)
    assert said == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1000, 400])
def test_nobody_is_shut_out(browser: Browser, server: StandIn, scheme: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python")
    context = browser.new_context(
        color_scheme="dark" if scheme == "dark" else "light", viewport={"width": width, "height": 800}, bypass_csp=True
    )
    page = opened(context, server)
    write(page, BEGINNING)
    coloured(page)
    ways_on(page, 3)
    for opens in (None, ".menu summary", "#help"):
        if opens is not None:
            page.locator(opens).click()
        found = axe.Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
    # Nothing is cut off at the side.
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()
