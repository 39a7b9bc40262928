"""The harness for pages sees what is wrong with one."""

import pytest

from tests import browser

PAGE = '<!doctype html><html lang="en"><title>t</title><main><h1>Title</h1>{}</main></html>'


@pytest.fixture
def open_bad(chromium):
    pages = browser.Pages(chromium)
    yield pages
    pages.close()


@pytest.mark.parametrize(
    "body, fault",
    [
        ("<script>nothing()</script>", "thrown: nothing is not defined"),
        ("<script>console.error('so')</script>", "so"),
        ("<img alt='' src='http://127.0.0.1:9/x.png'>", "the page asks the network"),
    ],
)
def test_a_page_that_fails_is_noticed(open_bad, tmp_path, body, fault):
    (tmp_path / "page.html").write_text(PAGE.format(body))
    open_bad(tmp_path / "page.html")
    assert any(fault in found for found in open_bad.faults)


def test_axe_finds_a_picture_without_words(open_page, tmp_path):
    (tmp_path / "page.html").write_text(
        PAGE.format("<img src='data:image/gif;base64,R0lGODlhAQABAAAAACw='>")
    )
    assert [found.split(":")[0] for found in browser.axe(open_page(tmp_path / "page.html"))] == [
        "image-alt"
    ]


def test_a_page_wider_than_the_window_is_measured(open_page, tmp_path):
    (tmp_path / "page.html").write_text(
        PAGE.format("<div style='width: 500px; height: 9px'></div>")
    )
    assert browser.overflow(open_page(tmp_path / "page.html")) == 0
    assert browser.overflow(open_page(tmp_path / "page.html", phone=True)) > 100
