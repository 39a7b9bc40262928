"""Charts of the page: what is drawn is where the numbers are."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from nlhf_jax.report import charts, curves
from nlhf_jax.report.charts import Chart, Dot, Line
from nlhf_jax.report.contents import Stage


def drawn(chart: Chart) -> ElementTree.Element:
    return ElementTree.fromstring(charts.svg(chart))


def paths(chart: Chart, kind: str) -> list[str]:
    found = [one for one in drawn(chart).iter("path") if kind in one.get("class").split()]
    return [one.get("d") for one in found]


def points(path: str) -> np.ndarray:
    return np.array([pair.split(",") for pair in re.split("[ML]", path)[1:]], float)


def test_points_are_an_affine_picture_of_the_numbers_and_grow_upwards():
    x, y = np.array([0.0, 10, 30, 100]), np.array([1.0, -2, 0.5, 4])
    (path,) = paths(Chart("t", "x", "y", [Line("a", x, y)]), "line")
    at = points(path)
    for pixels, values, sign in ((at[:, 0], x, 1), (at[:, 1], y, -1)):
        slope, _ = np.polyfit(values, pixels, 1)
        assert slope * sign > 0 and np.corrcoef(values, pixels)[0, 1] ** 2 > 0.9999


def test_ticks_stand_at_what_they_say():
    x = np.array([0.0, 100])
    chart = Chart("t", "x", "y", [Line("a", x, np.array([-1.0, 1.0]))])
    (path,) = paths(chart, "line")
    (left, bottom), (right, top) = points(path)
    ticks = [one for one in drawn(chart).iter("text") if "tick" in one.get("class")]
    assert len(ticks) > 5
    for tick in ticks:
        value = float(tick.text.replace("−", "-"))
        if "end" in tick.get("class"):
            expected = bottom + (value + 1) / 2 * (top - bottom) + 3.5
            assert float(tick.get("y")) == pytest.approx(expected, abs=0.2)
        else:
            expected = left + value / 100 * (right - left)
            assert float(tick.get("x")) == pytest.approx(expected, abs=0.2)


@pytest.mark.parametrize("scale", [1e-7, 3e-4, 0.02, 1, 37, 12000, 4e6])
def test_labels_of_ticks_differ_and_are_short(scale):
    y = np.array([0.1, 1.3]) * scale
    chart = Chart("t", "x", "y", [Line("a", np.array([0.0, 1]), y)])
    labels = [one.text for one in drawn(chart).iter("text") if one.get("class") == "tick end"]
    assert len(set(labels)) == len(labels) >= 2
    assert max(map(len, labels)) <= 7


def test_values_that_are_not_finite_leave_gaps():
    y = np.array([1.0, np.nan, 2, 3, np.inf, 4])
    (path,) = paths(Chart("t", "x", "y", [Line("a", np.arange(6), y)]), "line")
    assert re.sub(r"[\d.,]+", "", path) == "MMLM"
    drawn(Chart("t", "x", "y", [Line("a", np.arange(2), np.array([np.nan, np.nan]))]))


def test_a_long_curve_is_thinned_and_keeps_its_peaks():
    y = np.random.default_rng(0).normal(size=20_000)
    y[[777, 13_001]] = 50, -60
    (raw,), (smooth,) = (
        paths(Chart("t", "x", "y", [Line("a", np.arange(20_000), y)]), kind)
        for kind in ("raw", "line")
    )
    heights = points(raw)[:, 1]
    assert len(heights) <= 242
    tick = 20  # pixels: nothing else comes near the two
    assert np.sort(heights)[1] - heights.min() > tick
    assert heights.max() - np.sort(heights)[-2] > tick
    assert np.ptp(points(smooth)[:, 1]) < 0.2 * np.ptp(heights)


def test_bars_reach_from_low_to_high_and_the_level_lies_at_one_half():
    dots = [Dot("a", (1, 2, 4), (0.3, 0.5, 0.6)), Dot("b", (3, 3, 3), (0.4, 0.45, 0.5), 1)]
    chart = Chart("t", "x", "y", dots=dots, level=0.5)
    across, along, _, other = (points(path) for path in paths(chart, "bar"))
    level = float(re.search(r",([\d.]+)H", paths(chart, "level")[0])[1])
    assert np.allclose(across[:, 1], level)
    assert along[0, 1] > level > along[1, 1] and other[1, 1] == pytest.approx(level, abs=0.1)
    one, two, four = across[0, 0], along[0, 0], across[1, 0]
    assert (two - one) / (four - one) == pytest.approx(1 / 3, abs=0.01)


def test_names_are_shown_and_never_markup():
    name = "<script>&\"'"
    chart = Chart(name, name, name, [Line(name, np.arange(3), np.arange(3.0))])
    text = charts.svg(chart)
    assert "<script" not in text
    assert [one.text for one in drawn(chart).iter("text")].count(name) == 3
    assert chart.legend == {name: 0}


def test_trainings_of_policies_stand_beside_each_other_by_metric():
    def stage(name: str, metrics: dict[str, dict[str, int]]) -> Stage:
        made = {
            metric: {split: (np.arange(n), np.arange(n) + 0.5) for split, n in splits.items()}
            for metric, splits in metrics.items()
        }
        return Stage(name, None, None, None, {}, made)

    both = {"train": 9, "validation": 2}
    stages = [
        stage("sft", {"loss": both, "entropy": both}),  # no policy against a reference
        stage("md", {"kl": both, "win_rate_over_reference": {"validation": 2}, "loss": both}),
        stage("rlhf", {"kl": both, "win_rate_over_reference": {"validation": 2}, "reward": both}),
    ]
    found = curves.side_by_side(stages)
    titles = ["win rate over reference (validation)", "kl (train)"]
    assert [chart.title for chart in found] == titles
    assert [chart.legend for chart in found] == [{"md": 0, "rlhf": 1}] * 2
    assert [chart.level for chart in found] == [0.5, None]
    assert [len(line.y) for line in found[1].lines] == [9, 9]
