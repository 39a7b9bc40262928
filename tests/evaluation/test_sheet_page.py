"""The page of a blinded sheet in a browser: answered by keyboard, reloaded, saved, read back."""

import json

import pytest

from nlhf_jax.evaluation import blind_sheet, people
from tests import browser
from tests.evaluation.test_blind_sheet import NAMES, NASTY, numbered
from tests.evaluation.test_people import ANSWERS

KEYS = {"1": "1", "2": "2", "tie": "="}
LONG = (
    "SUBREDDIT: r/relationships\nTITLE: My (24F) boyfriend (26M) wants to move in after three"
    " months\nPOST: "
    + "We met in spring, and everything has been lovely. He now says that his lease"
    " ends in June and that it would be silly to rent two places. " * 8
)


@pytest.fixture
def sheet(tmp_path):
    made = blind_sheet.draw(numbered(NAMES, 4), 12, 0)
    blind_sheet.write(made, tmp_path)
    return made


@pytest.fixture
def path(sheet, tmp_path):
    return tmp_path / blind_sheet.PAGE


def planned(sheet):
    """Of each comparison an answer, all three kinds among them."""
    return {item.id: list(KEYS)[number % 3] for number, item in enumerate(sheet.items)}


def answer(page, sheet, answers):
    """By keyboard, each comparison as it comes."""
    for _ in answers:
        page.keyboard.press(KEYS[answers[shown(page, sheet)]])


def shown(page, sheet) -> str:
    """The id of the comparison that the page shows, by its texts."""
    texts = tuple(page.locator(f"#{name}").text_content() for name in ("prompt", "first", "second"))
    (found,) = [item.id for item in sheet.items if sheet.texts(item) == texts]
    return found


def save(page, button, directory):
    """Presses a button of the dialog, and gives the file that comes."""
    if not page.locator("#answers").is_visible():
        page.keyboard.press("s")
    with page.expect_download() as download:
        page.locator(button).click()
    path = directory / download.value.suggested_filename
    download.value.save_as(path)
    return path


def read(path, sheet):
    (rater,) = people.read_answers([path], sheet)
    kinds = {value: kind for kind, value in ANSWERS.items()}
    return rater.name, {item: kinds[value] for item, value in rater.answers.items()}


def progress(page) -> str:
    return page.locator("#progress-text").text_content()


def test_a_sheet_is_answered_by_keyboard_over_a_reload_and_read_back(
    open_page, sheet, path, tmp_path
):
    answers = planned(sheet)
    page = open_page(path)
    ids = [item.id for item in sheet.items]
    assert (shown(page, sheet), progress(page)) == (ids[0], "0 of 12 answered")
    answer(page, sheet, dict(list(answers.items())[:5]))
    page.reload()
    assert (shown(page, sheet), progress(page)) == (ids[5], "5 of 12 answered")
    answer(page, sheet, dict(list(answers.items())[5:]))
    assert progress(page) == "12 of 12 answered"
    assert page.locator("#done").is_visible()
    page.keyboard.press("s")
    page.locator("#rater").fill("Ann")
    saved = save(page, "#save-json", tmp_path)
    assert saved.name == f"answers-{sheet.id}-Ann.json"
    assert read(saved, sheet) == ("Ann", answers)
    assert read(save(page, "#save-csv", tmp_path), sheet) == ("Ann", answers)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("#copy").click()
    page.locator("#answers-status", has_text="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == saved.read_text()


@pytest.mark.parametrize(
    ("button", "name"),
    [
        ("#save-json", '-"q", \\u0041 </script>'),
        ("#save-csv", "=1+1"),
        ("#save-csv", "'=a"),
        ("#save-csv", ' "李 \u202eé", x '),
    ],
)
def test_an_export_is_taken_in_again_in_another_browser(
    open_page, sheet, path, tmp_path, button, name
):
    some = dict(list(planned(sheet).items())[:7])
    page = open_page(path)
    answer(page, sheet, some)
    page.keyboard.press("s")
    page.locator("#rater").fill(name)
    saved = save(page, button, tmp_path)
    other = open_page(path)
    assert progress(other) == "0 of 12 answered"
    other.keyboard.press("s")
    other.locator("#import").set_input_files(saved)
    other.get_by_text("7 answers read").wait_for()
    assert other.locator("#rater").input_value() == name
    again = save(other, "#save-json", tmp_path)
    assert read(again, sheet) == read(saved, sheet) == (name.strip(), some)


def test_what_is_no_export_of_this_sheet_is_refused_and_changes_nothing(
    open_page, sheet, path, tmp_path
):
    page = open_page(path)
    page.keyboard.press("1")
    page.keyboard.press("s")
    good = save(page, "#save-json", tmp_path).read_text()
    before = page.evaluate("Object.values(localStorage)[0]")
    cases = {
        "a.json": good.replace(sheet.id, "bbbbbb"),
        "b.json": good[:-5],
        "c.json": good.replace('"answer":"1"', '"answer":"3"'),
        "d.json": json.dumps({"sheet": sheet.id, "answers": []}),
        "e.json": json.dumps({"sheet": sheet.id, "answers": [None]}),
        "f.csv": "id,answer,rater\r\nbbbbbb-1,1,\r\n",
        "g.csv": "name\r\nx\r\n",
        "h.json": good.replace("-1", "-99"),
    }
    assert len(set(cases.values()) | {good}) == len(cases) + 1
    for name, content in cases.items():
        (tmp_path / name).write_text(content)
        page.locator("#import").set_input_files(tmp_path / name)
        page.locator("#answers-status.bad", has_text=name).wait_for()
        assert page.evaluate("Object.values(localStorage)[0]") == before


def test_undo_takes_answers_back_one_by_one_and_shows_what_they_were_to(open_page, sheet, path):
    page = open_page(path)
    ids = [item.id for item in sheet.items]
    assert page.locator("#undo").is_disabled()
    page.keyboard.press("1")
    page.keyboard.press("2")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("=")  # the second again
    assert shown(page, sheet) == ids[2]
    page.keyboard.press("u")
    assert shown(page, sheet) == ids[1]
    assert page.locator("[data-answer='2']").get_attribute("aria-pressed") == "true"
    page.keyboard.press("u")
    page.locator("#undo").click()
    assert (shown(page, sheet), progress(page)) == (ids[0], "0 of 12 answered")
    page.keyboard.press("u")  # nothing is left to undo
    assert progress(page) == "0 of 12 answered"


def test_next_unanswered_passes_over_what_is_answered_and_begins_again_at_the_end(
    open_page, sheet, path
):
    page = open_page(path)
    ids = [item.id for item in sheet.items]
    page.keyboard.press("ArrowRight")
    page.keyboard.press("1")
    page.keyboard.press("1")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")  # stays at the first
    assert shown(page, sheet) == ids[0]
    page.keyboard.press("n")
    assert shown(page, sheet) == ids[3]
    page.locator("summary").click()
    page.get_by_role("button", name="Comparison 12, no answer").click()
    page.keyboard.press("n")
    assert shown(page, sheet) == ids[0]
    assert page.get_by_role("button", name="Comparison 2, response 1 is better").is_visible()


def test_keys_answer_nothing_while_typing_held_with_another_key_or_turned_off(
    open_page, sheet, path
):
    page = open_page(path)
    page.keyboard.press("s")
    page.locator("#rater").press_sequentially("1 2 = u")
    page.keyboard.press("Enter")
    assert page.locator("#rater").input_value() == "1 2 = u"
    page.keyboard.press("Escape")
    page.keyboard.press("Alt+1")
    assert progress(page) == "0 of 12 answered"
    page.keyboard.down("1")
    page.keyboard.down("1")  # a key held down repeats
    page.keyboard.up("1")
    assert progress(page) == "1 of 12 answered"
    page.locator("#keys").uncheck()
    page.keyboard.press("1")
    page.reload()
    page.keyboard.press("1")
    assert progress(page) == "1 of 12 answered"
    assert not page.locator("#keys").is_checked()


REFUSED = "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('no'); }})"
FULL = "Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); }"


@pytest.mark.parametrize("script", [REFUSED, FULL])
def test_where_the_browser_keeps_nothing_it_is_said_and_all_else_works(
    open_page, sheet, path, tmp_path, script
):
    page = open_page(path, script=script)
    asked = []
    page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    assert "save your answers before you close" in page.locator("#notice").text_content()
    page.keyboard.press("1")
    page.reload()
    assert (asked, progress(page)) == (["beforeunload"], "0 of 12 answered")
    answer(page, sheet, planned(sheet))
    assert read(save(page, "#save-json", tmp_path), sheet)[1] == planned(sheet)
    page.reload()
    assert asked == ["beforeunload"]


def test_what_another_program_left_in_the_store_is_no_answer(open_page, sheet, path):
    page = open_page(path)
    for left in (
        "{",
        "[]",
        "null",
        json.dumps({"answers": [["x", "1"], 3, [sheet.items[0].id, "7"]]}),
    ):
        page.evaluate("left => localStorage.setItem(Object.keys(localStorage)[0], left)", left)
        page.reload()
        assert progress(page) == "0 of 12 answered"
    page.keyboard.press("2")
    page.reload()
    assert progress(page) == "1 of 12 answered"


def test_two_tabs_of_a_sheet_have_the_same_answers_and_two_sheets_have_not(
    open_page, sheet, path, tmp_path
):
    page = open_page(path)
    page.keyboard.press("1")
    tab = page.context.new_page()
    tab.goto(path.as_uri())
    tab.keyboard.press("2")
    page.get_by_text("2 of 12 answered").wait_for()
    page.keyboard.press("n")
    page.keyboard.press("=")
    tab.get_by_text("3 of 12 answered").wait_for()
    blind_sheet.write(blind_sheet.draw(numbered(NAMES, 4), 12, 1), tmp_path / "other")
    tab.goto((tmp_path / "other" / blind_sheet.PAGE).as_uri())
    assert progress(tab) == "0 of 12 answered"


def test_texts_are_shown_as_they_are_and_none_is_run(open_page, tmp_path):
    responses = {
        "one": [(f"{text} x", text) for text in NASTY],
        "other": [(f"{text} x", f"!{text}!") for text in NASTY],
    }
    sheet = blind_sheet.draw(responses, 99, 0)
    blind_sheet.write(sheet, tmp_path)
    page = open_page(tmp_path / blind_sheet.PAGE)
    for item in sheet.items:
        for name, text in zip(("prompt", "first", "second"), sheet.texts(item), strict=True):
            shown_text = page.locator(f"#{name}").text_content()
            assert shown_text == (text.replace("\r\n", "\n") or "(empty)")
        page.keyboard.press("1")
    assert page.evaluate("window.hit === undefined")
    assert page.locator("main img, main b, main script").count() == 0


def test_whoever_hears_the_page_is_told_what_happened(open_page, sheet, path):
    page = open_page(path)
    page.keyboard.press("2")
    status = page.get_by_role("status").first
    assert status.text_content() == "Comparison 1: response 2 is better."
    assert page.evaluate("document.activeElement.textContent") == "Comparison 2 of 12"
    page.keyboard.press("u")
    assert status.text_content() == "Undone: comparison 1 as it was."
    answer(page, sheet, planned(sheet))
    assert status.text_content().startswith("All are answered")
    page.keyboard.press("s")
    assert page.evaluate("document.activeElement.id") == "rater"
    assert page.get_by_label("Your name").count() == 1


@pytest.mark.parametrize(
    ("dark", "phone"),
    [
        (False, False),
        (True, True),
        pytest.param(True, False, marks=pytest.mark.long),
        pytest.param(False, True, marks=pytest.mark.long),
    ],
)
def test_it_can_be_used_by_everybody_on_a_desk_and_on_a_phone(open_page, tmp_path, dark, phone):
    """axe-core finds nothing serious in any state of the page, and nothing is wider than it."""
    responses = {
        name: [(f"{number}. {LONG}", f"{name} " * 12 * who) for number in range(20)]
        for who, name in enumerate(("alpha", "beta"))
    }
    blind_sheet.write(blind_sheet.draw(responses, 20, 0, "Which summary is better?"), tmp_path)
    page = open_page(tmp_path / blind_sheet.PAGE, dark=dark, phone=phone)
    name = f"sheet-{'dark' if dark else 'light'}-{'phone' if phone else 'desk'}"

    def look(state, whole=False):
        browser.screenshot(page, f"{name}-{state}", whole)
        assert browser.axe(page) == []
        assert browser.overflow(page) == 0

    press = "tap" if phone else "click"
    look("start")
    getattr(page.locator("[data-answer='1']"), press)()
    getattr(page.locator("[data-answer='tie']"), press)()
    getattr(page.get_by_role("button", name="Previous"), press)()
    getattr(page.locator("summary"), press)()
    look("grid", whole=True)
    for _ in range(19):
        page.keyboard.press("2")
    assert progress(page) == "20 of 20 answered"
    look("done")
    getattr(page.locator("#done-save"), press)()
    page.locator("#rater").fill("Ann")
    look("save")
