import matplotlib
import numpy as np
import pytest

from nlhf_jax.evaluation import statistics
from nlhf_jax.evaluation.intervals import Estimate
from nlhf_jax.report import plots


def win_rates(players: int):
    names = [f"policy_{n}" for n in range(players)]
    return statistics.win_rates(
        names, np.random.default_rng(0).random((30, players, players)), False, 0
    )


def texts(figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_every_cell_of_the_heat_map_shows_its_rate_and_interval():
    rates = win_rates(4)
    shown = texts(plots.heat_map(rates, "a run"))
    for i in range(4):
        for j in range(4):
            if i != j:
                assert f"{rates.rate[i, j]:.3f}" in shown
                assert f"{rates.low[i, j]:.3f}–{rates.high[i, j]:.3f}" in shown


@pytest.mark.parametrize("dark", [False, True])
def test_text_on_a_win_rate_can_be_read_at_every_rate(dark):
    for rate in np.linspace(0, 1, 201):
        assert plots.contrast(*plots.cell_colors(rate, dark)) >= 4.5


def test_contrast_is_that_of_the_standard():
    assert plots.contrast("#000000", "#ffffff") == pytest.approx(21)
    assert plots.contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_figures_name_their_axes_units_and_run():
    curve = (np.arange(5), np.arange(5.0))
    curves = plots.learning_curves("nash_md", {"kl": {"train": curve}}, "a run")
    (axes,) = curves.axes
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title("left")) == (
        "training step",
        "nats",
        "kl",
    )
    scatter = plots.win_rate_against_kl(["a"], [Estimate(0.6, 0.5, 0.7)], [3.0], [0.1], "a run")
    assert "nats" in scatter.axes[0].get_xlabel()
    for figure in (curves, scatter, plots.heat_map(win_rates(3), "a run")):
        assert figure.get_supxlabel().endswith("run: a run")


def test_a_long_curve_is_drawn_with_its_moving_average_and_a_short_one_as_it_is():
    noisy = np.random.default_rng(0).normal(size=400)
    long, short = (np.arange(400), noisy), (np.arange(30), noisy[:30])
    figure = plots.learning_curves("s", {"loss": {"train": long}, "kl": {"train": short}}, "r")
    loss, kl = figure.axes
    faint, bold = (line.get_ydata() for line in loss.lines)
    np.testing.assert_array_equal(faint, noisy)
    assert np.std(bold) < 0.4 * np.std(noisy)
    np.testing.assert_array_equal(kl.lines[0].get_ydata(), noisy[:30])


def test_the_moving_average_is_the_mean_of_the_points_around():
    values = np.array([1.0, 2.0, 6.0, np.nan, 3.0, np.inf, 9.0])
    expected = [1.5, 3.0, 4.0, np.nan, 3.0, np.nan, 9.0]
    np.testing.assert_allclose(plots.moving_average(values, 3), expected)


def test_a_constant_metric_is_a_level_line():
    values = 3e-4 * (1 + 1e-12 * np.random.default_rng(0).normal(size=50))
    figure = plots.learning_curves("s", {"learning_rate": {"train": (np.arange(50), values)}}, "r")
    assert figure.axes[0].get_ylim() == pytest.approx((1.5e-4, 4.5e-4))


def test_the_same_figure_has_the_same_bytes_and_leaves_matplotlib_as_it_was():
    before = dict(matplotlib.rcParams.copy())
    first, again = (plots.png(plots.heat_map(win_rates(2), "r")) for _ in range(2))
    assert first == again
    assert first.startswith(b"\x89PNG")
    for name in before.keys() - {"backend"}:  # reading this one makes matplotlib choose one
        assert matplotlib.rcParams[name] == before[name]
