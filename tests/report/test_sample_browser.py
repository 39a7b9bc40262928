"""The page in a browser: what it shows is what was packed, and it is used as people use it."""

import dataclasses
import re

import numpy as np
import pytest

from nlhf_jax.report import browser as packing
from nlhf_jax.report import inline
from tests import browser
from tests.report import browsing
from tests.report.test_report import write_stage, write_tournament

PLAYERS = ("SFT", "Nash-MD", "a|<b>", "reference")
N = 40


@pytest.fixture(scope="module")
def kept():
    return browsing.spiced(browsing.browsed(PLAYERS, N))


@pytest.fixture(scope="module")
def path(kept, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("page") / "my run"
    for stage in ("rlhf", "nash_md"):
        write_stage(workdir, stage, steps=200)
    write_tournament(workdir)
    (workdir / "report.html").write_text(browsing.page(workdir, {"tournament": kept}))
    return workdir / "report.html"


def ready(page):
    page.wait_for_selector(".browser:not([hidden]) .shown .pair")
    return page


def at(path, fragment: str):
    """The page's path with a fragment, which `open_page` opens as a browser opens a link."""

    class Link:
        def absolute(self):
            return self

        def as_uri(self):
            return path.absolute().as_uri() + fragment

    return Link()


def control(page, name):
    return page.locator(f"[data-control={name}]")


def listed(page) -> list[int]:
    return [int(text) for text in page.locator(".list .number").all_text_contents()]


def shown(page) -> int:
    return int(page.locator(".permalink").text_content().removeprefix("Prompt "))


def arrived(page, sample: int):
    page.wait_for_function(
        f"() => document.querySelector('.permalink').textContent === 'Prompt {sample}'"
    )


def is_in_sight(page) -> bool:
    """Whether the list has come to the sample on show."""
    row, window = (page.locator(x).bounding_box() for x in (".list [aria-current]", ".list"))
    above = row["y"] - window["y"]
    return above >= -1 and above + row["height"] <= window["height"] + 1


def p(kept, judge, first, second) -> np.ndarray:
    """`[N, 2]`: P(first > second) as asked with the first shown first, and with the second."""
    i, j = kept.players.index(first), kept.players.index(second)
    orders = kept.orders[judge]
    return np.stack([orders[:, i, j], 1 - orders[:, j, i]], 1)


def test_what_comes_out_of_the_page_is_what_was_packed(open_page, path, kept):
    page = ready(open_page(path))
    tree = page.evaluate(
        """async () => {
          const packed = document.querySelector(".browser").nextElementSibling.textContent;
          const d = new Data(await unpack(packed)), players = d.players.keys(), found = [];
          for (const i of players) for (let n = 0; n < d.size; n++) found.push({
            player: d.players[i], n, text: d.text(n, i), tokens: d.tokens(n, i),
            p: d.judges.map((_, judge) => d.players.map((_, j) => d.orders_of(judge, n, i, j)[0])),
          });
          return found;
        }"""
    )
    assert len(tree) == N * len(PLAYERS)
    for one in tree:
        player, n = one["player"], one["n"]
        response = kept.responses[player][n]
        assert one["text"].strip() == response.text.strip()
        if response.pieces:
            pieces, ratios = zip(*one["tokens"], strict=True)
            assert "".join(pieces) == "".join(response.pieces).replace("\u2581", " ").lstrip(" ")
            expected = np.clip(response.ratios, -25, 25)
            known = [np.nan if ratio is None else ratio for ratio in ratios]
            np.testing.assert_allclose(known, expected, atol=packing.RATIO_STEP / 2 + 1e-9)
        for judge, row in zip(browsing.JUDGES, one["p"], strict=True):
            i = kept.players.index(player)
            for j, value in enumerate(row):
                if i != j:
                    known = np.nan if value is None else value
                    np.testing.assert_allclose(known, kept.orders[judge][n, i, j], atol=5.1e-4)


def test_filters_and_sorting_keep_what_they_say(open_page, path, kept):
    page = ready(open_page(at(path, "#sample=1&a=SFT&b=Nash-MD")))
    main, other = (p(kept, judge, "SFT", "Nash-MD") for judge in browsing.JUDGES)
    mean = np.nanmean(main, 1)
    others = other.mean(1)  # NaN where this judge was not asked
    gap = np.abs(main[:, 0] - main[:, 1])
    first, second = kept.responses["SFT"], kept.responses["Nash-MD"]
    expected = {
        "all": np.full(N, True),
        "a": mean >= 0.6,
        "b": mean <= 0.4,
        "tie": np.abs(mean - 0.5) < 0.1,
        "order": (main.max(1) > 0.5) & (main.min(1) < 0.5) & (gap >= 0.1),
        "judges": ((mean > 0.5) != (others > 0.5)) & (np.abs(mean - others) >= 0.1),
        "empty": np.array([not one.text.strip() or not two.text.strip() for one, two in
                           zip(first, second, strict=True)]),
        "same": np.array([one.text == two.text for one, two in zip(first, second, strict=True)]),
    }  # fmt: skip
    expected["judges"] &= ~np.isnan(others)
    for name, mask in expected.items():
        control(page, "show").select_option(name)
        assert listed(page) == (np.flatnonzero(mask) + 1).tolist(), name
        assert mask.sum() > 0 and shown(page) in listed(page)
    control(page, "show").select_option("a")
    control(page, "margin").fill("0.3")
    assert listed(page) == (np.flatnonzero(mean >= 0.8) + 1).tolist()
    control(page, "show").select_option("all")
    control(page, "sort").select_option("a")
    assert listed(page) == (np.argsort(-mean, kind="stable") + 1).tolist()
    control(page, "judge").select_option(browsing.JUDGES[1])
    control(page, "sort").select_option("b")
    known = np.argsort(others, kind="stable")[: N - 1] + 1
    assert listed(page) == [*known.tolist(), 8]  # of the eighth this judge was not asked


def test_a_search_finds_the_samples_that_have_every_word(open_page, path, kept):
    page = ready(open_page(path))
    word = kept.responses["reference"][11].text.split()[-1]
    texts = [
        "\n".join([kept.prompts[n], *kept.references[n]] + [
            kept.responses[name][n].text for name in PLAYERS]).lower()
        for n in range(N)
    ]  # fmt: skip
    control(page, "q").fill(f"{word.upper()} 1")
    expected = [n + 1 for n, text in enumerate(texts) if word in text and "1" in text]
    assert listed(page) == expected and 12 in expected and len(expected) < N
    assert page.locator(".count").text_content() == f"{len(expected)} of {N} samples"
    control(page, "q").fill("nowhere in it")
    assert listed(page) == [] and page.locator(".none").is_visible()
    page.get_by_role("button", name="Show all").click()
    assert len(listed(page)) == N


def test_every_key_does_what_the_help_says(open_page, path):
    page = ready(open_page(at(path, "#sample=1&a=SFT&b=Nash-MD")))
    press = page.keyboard.press
    for key, sample in (("j", 2), ("ArrowRight", 3), ("k", 2), ("ArrowLeft", 1), ("k", 1)):
        press(key)
        arrived(page, sample)
    press("x")
    assert control(page, "a").input_value() == "Nash-MD"
    press("s")
    assert page.locator(".browser.unshaded").count() == 1
    assert page.get_by_role("button", name="Shading").get_attribute("aria-pressed") == "false"
    press("?")
    assert page.get_by_role("dialog").is_visible()
    press("Escape")
    assert not page.get_by_role("dialog").is_visible()
    press("/")
    page.keyboard.type("xj?")  # goes into the search now
    assert (
        control(page, "q").input_value() == "xj?" and control(page, "a").input_value() == "Nash-MD"
    )
    press("Escape")
    assert page.evaluate("document.activeElement === document.body")


def test_a_view_is_its_link_and_back_and_forward_walk_through_samples(open_page, path):
    page = ready(open_page(at(path, "#sample=17&a=a%7C%3Cb%3E&b=reference")))
    assert shown(page) == 17
    names = page.locator(".pair h3").all_text_contents()
    assert names == ["A a|<b>", "B reference"]
    assert is_in_sight(page)
    box = page.locator(".browser").bounding_box()
    assert box["y"] < 450  # a link to a sample leads there
    page.keyboard.press("j")
    page.wait_for_function("() => location.hash.startsWith('#sample=18&')")
    page.locator(".list a").nth(29).click()
    page.wait_for_function("() => location.hash.startsWith('#sample=30&')")
    assert shown(page) == 30 and is_in_sight(page)
    for step, sample in ((page.go_back, 18), (page.go_back, 17), (page.go_forward, 18)):
        step()
        arrived(page, sample)


def test_a_link_keeps_search_filter_judge_and_sorting(open_page, path):
    page = ready(open_page(path))
    page.locator(".list a").nth(4).click()
    arrived(page, 5)
    page.go_back()  # to the page without a fragment
    arrived(page, 1)
    control(page, "q").fill("a")
    control(page, "judge").select_option(browsing.JUDGES[1])
    control(page, "show").select_option("b")
    control(page, "sort").select_option("order")
    before, fragment = listed(page), page.evaluate("location.hash")
    copy = ready(open_page(at(path, fragment)))
    assert listed(copy) == before != []
    assert shown(copy) == shown(page)
    nonsense = ready(open_page(at(path, "#sample=999&a=nobody&show=constructor&margin=x&judge=")))
    assert shown(nonsense) == 1 and len(listed(nonsense)) == N


def test_a_cell_of_the_matrix_leads_to_the_samples_of_its_pair(open_page, tmp_path):
    """In the browser of its own tournament, of two on one page."""
    throws = ("rock", "paper", "scissors", "a|<b>")
    kept = {"early": browsing.browsed(throws, 12), "tournament": browsing.browsed(throws, 20)}
    for stage in kept:
        write_tournament(tmp_path, stage=stage)
    (tmp_path / "report.html").write_text(browsing.page(tmp_path, kept))
    page = open_page(tmp_path / "report.html")
    page.wait_for_function("() => document.querySelectorAll('.shown .pair').length === 2")
    names = page.locator(".browser").evaluate_all("all => all.map((one) => one.dataset.name)")
    assert names == ["tournament", "early"]
    early = page.locator(".browser").nth(names.index("early"))
    before = page.locator(".browser").first.locator(".pair").inner_text()
    section = page.locator("section", has=page.get_by_role("heading", name="early: Who beats whom"))
    section.locator("tbody tr").nth(3).locator("td").nth(1).locator("a").click()
    page.wait_for_function("() => location.hash.includes('in=early')")
    assert early.locator(".pair h3").all_text_contents() == ["A a|<b>", "B paper"]
    assert early.bounding_box()["y"] < 450
    page.keyboard.press("j")  # it is the one that is looked at
    page.wait_for_function("() => location.hash.includes('sample=2')")
    assert early.locator(".permalink").text_content() == "Prompt 2"
    assert page.locator(".browser").first.locator(".pair").inner_text() == before


def test_a_chart_says_what_its_curves_come_to_where_one_points(open_page, path):
    """`write_stage` wrote a KL of step / 9; 200 steps."""
    page = ready(open_page(path))
    chart = page.locator("#learning-curves svg.chart").first
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    for share in (0.3, 0.6, 0.9):
        page.mouse.move(box["x"] + share * box["width"], box["y"] + 0.5 * box["height"])
        first, *curves = page.locator(".tip").inner_text().split("\n")
        step = float(first.removeprefix("training step "))
        assert len(curves) == 2 and 10 < step < 190
        for line in curves:
            assert float(line.split(": ")[1]) == pytest.approx(step / 9, abs=0.2)


def test_without_tokens_and_judgements_texts_are_browsed_all_the_same(open_page, tmp_path):
    kept = browsing.browsed(("one", "two"), 6)
    texts = {
        name: [packing.Response(one.text) for one in given]
        for name, given in kept.responses.items()
    }
    write_tournament(tmp_path)
    kept = dataclasses.replace(kept, responses=texts, orders={})
    (tmp_path / "report.html").write_text(browsing.page(tmp_path, {"tournament": kept}))
    page = ready(open_page(at(tmp_path / "report.html", "#a=one&b=two")))
    page.keyboard.press("j")
    page.keyboard.press("s")
    arrived(page, 2)
    assert page.locator(".side-a .tokens").text_content() == texts["one"][1].text
    assert page.locator(".judgements, .filters, .shades, .numbers").count() == 0


def test_a_notebook_shows_the_page_in_a_frame(open_page, path, tmp_path):
    """As IPython and Colab do: a frame whose text is given, and which has no address."""
    frame = inline.frame(path)._repr_html_()
    (tmp_path / "notebook.html").write_text(f"<!doctype html><title>n</title>{frame}")
    page = open_page(tmp_path / "notebook.html").frame_locator("iframe")
    page.locator(".shown .pair").wait_for()
    page.locator("[data-do=next]").click()
    page.locator(".permalink", has_text=re.compile("^Prompt 2$")).wait_for()
    page.locator("[data-control=b]").select_option("reference")
    page.locator("[data-control=q]").fill("a")
    page.locator(".list a").last.click()
    last = page.locator(".list .number").last.text_content()
    page.locator(".permalink", has_text=re.compile(f"^Prompt {last}$")).wait_for()
    page.get_by_role("link", name="How it was judged").click()
    page.locator("nav a[aria-current]", has_text="How it was judged").wait_for()
    assert page.locator(".pair h3").last.text_content() == "B reference"


def test_tokens_are_shaded_by_their_log_ratio_and_say_it(open_page, path, kept):
    page = ready(open_page(at(path, "#sample=9&a=SFT&b=reference")))
    response = kept.responses["SFT"][8]
    tokens = page.locator(".side-a .tokens span")
    assert tokens.count() == len(response.pieces)
    for token, ratio in zip(tokens.all(), response.ratios, strict=True):
        said = float(token.get_attribute("data-tip").removesuffix(" nats").replace("−", "-"))
        assert said == pytest.approx(ratio, abs=0.02)
        assert token.get_attribute("class") == ("less" if said < 0 else "more")
        strength = float(re.search(r"--s:\s*([\d.]+)", token.get_attribute("style"))[1])
        assert strength == pytest.approx(min(abs(said) / 4, 1), abs=0.01)
    tokens.first.hover()
    assert page.locator(".tip").text_content() == tokens.first.get_attribute("data-tip")
    total = f"{sum(response.ratios):+.1f}".replace("-", "−")[:-1]
    assert f"log π/μ {total}" in page.locator(".side-a .facts").text_content()
    assert page.locator(".side-b .tokens span").count() == 0
    page.locator(".side-a summary", has_text="Token by token").click()
    rows = page.locator(".side-a .numbers li").all_text_contents()
    assert len(rows) == len(response.pieces) and rows[-1].startswith("</s>")


def test_texts_are_shown_and_never_run(open_page, path):
    page = open_page(at(path, "#sample=6&a=SFT&b=a%7C%3Cb%3E"))
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    ready(page)
    assert page.locator(".shown .prompt .text").text_content() == browsing.HOSTILE
    assert page.locator(".side-a .tokens").text_content() == browsing.HOSTILE
    assert page.locator(".judgements th").all_text_contents()[-1] == "a|<i>judge</i>"
    assert page.locator(".browser img, .browser script, .shown i:not([class])").count() == 0


def test_a_script_that_came_in_with_a_text_would_not_run(chromium, path, tmp_path):
    """Should escaping ever fail, the page's policy knows its own scripts by their hashes."""
    text = path.read_text().replace("<main>", "<main><script>window.ran = 1</script>")
    (tmp_path / "page.html").write_text(text)
    context = chromium.new_context()
    page = context.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    ready(page)
    assert page.evaluate("window.ran") is None
    context.close()


def test_without_javascript_ten_samples_stand_there(chromium, path):
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.locator("noscript article.sample").count() == 10
    assert page.locator("noscript article.sample").first.is_visible()
    assert not page.locator(".browser").is_visible() and not page.locator("#theme").is_visible()
    context.close()


def test_the_choice_of_colours_is_kept(open_page, path):
    page = ready(open_page(path, dark=True))
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.locator("#theme").click()
    light = page.evaluate(ground)
    page.reload()
    assert page.evaluate(ground) == light == "rgb(255, 255, 255)" != dark
    for _ in range(2):  # dark, then as the system has it
        page.locator("#theme").click()
        assert page.evaluate(ground) == dark


@pytest.mark.parametrize("phone", [False, True], ids=["desk", "phone"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_no_serious_fault_and_nothing_is_wider_than_the_page(
    open_page, path, dark, phone
):
    page = ready(open_page(at(path, "#sample=9&a=SFT&b=Nash-MD"), dark, phone))
    page.evaluate("for (const fold of document.querySelectorAll('details')) fold.open = true")
    assert browser.axe(page) == []
    assert browser.overflow(page) == 0
    name = f"report-{'dark' if dark else 'light'}-{'phone' if phone else 'desk'}"
    browser.screenshot(page, name)


def test_paper_has_the_sample_on_show_and_no_controls(open_page, path):
    page = ready(open_page(path))
    page.emulate_media(media="print")
    assert page.locator(".shown .pair").is_visible()
    for gone in (".controls", ".matches", "nav", "#theme"):
        assert not page.locator(gone).is_visible()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator(".fold").count() == page.locator(".fold[open]").count() > 0
