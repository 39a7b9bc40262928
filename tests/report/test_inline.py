"""What notebooks show: shaded tokens, a report in a frame, small pictures."""

import html
import io
import re

import numpy as np
import pytest
from matplotlib import image

from nlhf_jax.errors import UserError
from nlhf_jax.report import inline, plots
from nlhf_jax.report.scored import Scored

HOSTILE = "<script>alert('&')</script>"


def scored(*log_ratios):
    ratios = np.float32(log_ratios)
    return Scored([f" {HOSTILE}"] * len(ratios), ratios - 2, np.full(len(ratios), -2, np.float32))


def test_tokens_are_shaded_by_their_log_ratio_and_say_it():
    text = scored(-9, -1, 0, 1, 9)._repr_html_()
    spans = re.findall(
        r'title="(.*?) nats" style="background:(.*?);color:(.*?);.*?>(.*?)</span>', text
    )
    assert [float(said) for said, *_ in spans] == [-9, -1, 0, 1, 9]
    assert {html.unescape(piece) for *_, piece in spans} == {f" {HOSTILE}"}
    assert HOSTILE not in text
    wanted = [plots.cell_colors(rate) for rate in (0, 0.375, 0.5, 0.625, 1)]
    assert [(back, ink) for _, back, ink, _ in spans] == wanted
    assert "log π/μ +0.00 nats" in text


def test_without_a_reference_the_text_is_plain():
    text = Scored(["a", HOSTILE], np.float32([-1, -2]))._repr_html_()
    assert "<span" not in text and HOSTILE not in text and "log π -3.00 nats" in text


def test_a_page_in_a_frame_is_the_whole_page(tmp_path):
    page = f'<!doctype html><title>"a" & b</title>{HOSTILE}\n'
    (tmp_path / "report.html").write_text(page)
    shown = inline.frame(tmp_path / "report.html", height=300)._repr_html_()
    assert html.unescape(re.search('srcdoc="([^"]*)"', shown)[1]) == page
    assert "height:300px" in shown and not shown.startswith("<iframe")  # of which IPython warns
    with pytest.raises(UserError, match="there is no page .*none.html"):
        inline.frame(tmp_path / "none.html")


def test_pictures_are_png():
    rate = np.array([[0.5, 0.9, 0.2], [0.1, 0.5, 0.7], [0.8, 0.3, 0.5]])
    ratios = {"one": [np.arange(3.0), np.arange(5.0)], "other": [np.zeros(1)]}
    for picture in (
        inline.preference_matrix(rate, "abc", "P"),
        inline.by_position(ratios, "run"),
    ):
        pixels = image.imread(io.BytesIO(picture._repr_png_()))
        assert pixels.shape[0] > 100 and len(np.unique(pixels.reshape(-1, 4), axis=0)) > 50
    with pytest.raises(ValueError, match="2 names do not fit"):
        inline.preference_matrix(rate, "ab", "P")
