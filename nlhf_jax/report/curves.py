"""The section of learning curves: trainings of policies beside each other, then each by itself."""

from collections.abc import Sequence

from nlhf_jax.report.charts import Chart, Line, curve_chart
from nlhf_jax.report.contents import Report, Stage, curves_file
from nlhf_jax.report.parts import Charts, Part, Picture, Section, Text

_COMPARED = ("win_rate", "preference", "reward", "kl", "entropy", "length")
_SPLITS = ("train", "validation")
_PANELS = 12  # as many as the picture of a stage has


def section(report: Report) -> Section | None:
    """None without curves."""
    stages = [stage for stage in report.stages if stage.curves]
    if not stages:
        return None
    parts: list[Part] = []
    compared = side_by_side(stages)
    if compared:
        says = "The trainings of policies beside each other; a long curve is its moving average."
        parts += [Text(says, quiet=True), Charts(compared)]
    for stage in stages:
        picture = Picture(curves_file(stage), f"Learning curves of {stage.name}")
        pictures = [picture] if picture.file in report.figures else []
        fold = stage.name if len(stages) > 1 else None
        parts.append(Charts(_of_stage(stage), pictures, fold))
    return Section("Learning curves", parts)


def side_by_side(stages: Sequence[Stage]) -> list[Chart]:
    """What several trainings of policies measured, a line each.

    A training of a policy is one that measures a KL. Of the two splits the one with more points is
    drawn.
    """
    policies = [stage for stage in stages if any("kl" in metric for metric in stage.curves)]
    names = dict.fromkeys(metric for stage in policies for metric in stage.curves)
    found = []
    for word in _COMPARED:
        for metric in [name for name in names if word in name and "per_token" not in name]:
            sharing = [stage for stage in policies if metric in stage.curves]
            split = max(reversed(_SPLITS), key=lambda split: _points(sharing, metric, split))
            lines = [
                Line(stage.name, *stage.curves[metric][split], series=policies.index(stage))
                for stage in sharing
                if split in stage.curves[metric]
            ]
            if len(lines) > 1:
                title = f"{metric.replace('_', ' ')} ({split})"
                found.append(curve_chart(metric, lines, title))
    return found


def _points(stages: Sequence[Stage], metric: str, split: str) -> int:
    return sum(
        len(stage.curves[metric][split][0]) for stage in stages if split in stage.curves[metric]
    )


def _of_stage(stage: Stage) -> list[Chart]:
    return [
        curve_chart(
            metric,
            [Line(split, *curve, series=_SPLITS.index(split)) for split, curve in splits.items()],
        )
        for metric, splits in list(stage.curves.items())[:_PANELS]
    ]
