"""The study of learners: each is trained from several seeds, and all are set side by side.

A chain, `studies/paper_table.gin`: raters once; every learner from every seed; a tournament of all
of them, judged by the population; a best response to each; and at the end the answers in words
(`nlhf_jax.studies.paper_table`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from matplotlib.figure import Figure

from nlhf_jax import processes
from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.exploited import of_tournament
from nlhf_jax.evaluation.intervals import Estimate
from nlhf_jax.evaluation.results import TournamentResult
from nlhf_jax.evaluation.seeds import settings_of
from nlhf_jax.files import absolute
from nlhf_jax.jobs.exploiting import POLICY, RESPONSE
from nlhf_jax.jobs.match import RESULT
from nlhf_jax.report import findings, plots
from nlhf_jax.report.findings import Finding
from nlhf_jax.studies import paper_table
from nlhf_jax.studies.paper_table import Compared


def stages(
    before: Sequence[Mapping[str, Any]],
    learners: Mapping[str, Mapping[str, Any]],
    only: Sequence[str] | None,
    seeds: int,
    exploited_seeds: int,
    response_steps: int,
    exploit: str,
    tournament: str,
    summary: str,
    rater: str,
    reference: str,
) -> list[Mapping[str, Any]]:
    """The stages of the chain, as `chain.run.stages` has them.

    Args:
      before: stages that all build on: the SFT policy and the raters.
      learners: setting -> `gin_file`, `macros`, and perhaps `also`: other settings that are
        parameter sets of the same runs, such as {"EMA1*": "#average"}.
      only: the settings of `learners` that are trained; None for all.
      seeds: runs of each.
      exploited_seeds: against so many of them a best response is trained.
      response_steps: of each best response's training.
      exploit, tournament, summary: gin files of a best response's training, of a tournament, and of
        `comparison`.
      rater: the stage of the preference model that responses are trained against.
      reference: the stage of the SFT policy, which plays as well.

    Raises:
      UserError: `only` names none of `learners`, or there are no seeds.
    """
    if seeds < 1:
        raise UserError(f"SEEDS is {seeds} but must be at least 1")
    unknown = [name for name in only or () if name not in learners]
    if unknown:
        raise UserError(f"ONLY names {unknown[0]!r}, but the learners are {', '.join(learners)}")
    shared = {"INITIAL_CHECKPOINT": reference, "RATER_CHECKPOINT": rater}
    found: list[Mapping[str, Any]] = list(before)
    players = {"SFT": reference}
    for seed in range(seeds):
        for name in learners if only is None else only:
            learner, stage = learners[name], _directory(name, seed)
            macros = {**shared, **learner.get("macros", {}), "SEED": seed}
            found.append(_stage(stage, "train", learner["gin_file"], macros))
            for setting, suffix in {name: "", **learner.get("also", {})}.items():
                players[f"{setting}#{seed}"] = f"stage:{stage}{suffix}"
    found.append(_stage("tournament", "evaluate", tournament, {"PLAYERS": players}))

    places = {}
    response = {**shared, "TRAIN_STEPS": response_steps, "TAU": 0.0}
    for name, checkpoint in players.items():
        setting, _, seed_of = name.partition("#")
        if int(seed_of or 0) >= exploited_seeds:
            continue
        own = _directory(setting, int(seed_of or 0))
        macros = {**response, "START_CHECKPOINT": checkpoint}
        found.append(_stage(f"response_to_{own}", "train", exploit, macros))
        met = {POLICY: checkpoint, RESPONSE: f"stage:response_to_{own}#best"}
        found.append(_stage(f"judged_{own}", "evaluate", tournament, {"PLAYERS": met}))
        places[name] = f"stage:judged_{own}"
    macros = {"TOURNAMENT": "stage:tournament", "JUDGED": places}
    found.append(_stage("comparison", "comparison", summary, macros))
    return [*found, {"name": "report", "job": "report"}]


def _stage(name: str, job: str, gin_file: str, macros: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": name, "job": job, "gin_file": gin_file, "macros": dict(macros)}


def _directory(setting: str, seed: int) -> str:
    """A run's stage; of `EMA1*` it is `EMA1_average_0`."""
    return f"{setting.replace('*', '_average').replace('-', '_')}_{seed}"


def comparison(workdir: str, tournament: str, judged: Mapping[str, str]) -> None:
    """The finding: writes `workdir/findings.json` and its figure.

    Args:
      workdir: the stage's directory.
      tournament: directory of the tournament of all runs.
      judged: run -> directory of the tournament of it and what was trained against it.

    Raises:
      UserError: a directory does not hold what it should.
    """
    if not processes.is_first():
        return
    runs = TournamentResult.load(epath.Path(tournament) / RESULT).win_rates
    values: dict[str, list[float]] = {}
    alone: dict[str, Estimate] = {}
    for name, directory in judged.items():
        result = TournamentResult.load(epath.Path(directory) / RESULT)
        plain = of_tournament(result, POLICY, RESPONSE, tau=0.0).plain
        (setting,) = settings_of([name])
        values.setdefault(setting, []).append(plain.value)
        alone[setting] = plain
    found = Compared(runs, values, alone)
    directory = epath.Path(workdir)
    answers = list(paper_table.answers(found))
    figure = exploitability_and_wins(found, absolute(directory).parent.name)
    finding = Finding(
        "comparison",
        "What the learners come to",
        " ".join(map(str, answers)),
        plots.png(figure),
        {"answers": [vars(answer) for answer in answers]},
        _table(found),
        " ".join(f"{answer.question} {answer.short}." for answer in answers),
    )
    findings.save(directory, [finding, *_published(found, figure)])


def _table(found: Compared) -> list[list[str]]:
    rows = [["Learner", "Runs", "Win rate over the others", "Exploitability"]]
    order = sorted(found.settings, key=lambda name: -_over_all(found, name).value)
    for name in order:
        exploitable = _said(found.exploitability(name)) if name in found.exploited else "–"
        wins = _said(_over_all(found, name))
        rows.append([name, str(len(found.settings[name])), wins, exploitable])
    return rows


def _published(found: Compared, figure: Figure) -> list[Finding]:
    """The published orderings one by one, if any of their pairs played."""
    rows = [
        [f"{one} over {other}", f"{published:.3f}", _said(rate), verdict]
        for one, other, published, rate, verdict in paper_table.orderings(found)
    ]
    if not rows:
        return []
    text = (
        "Rates of the paper’s Table 1 (PaLM 2 as the judge) and of Calandriello et al. 2024, and of"
        " the same pairs here. Those within .023 of one half, which is the paper’s own interval,"
        " have no order."
    )
    header = ["Pair", "Published", "Here", "The ordering"]
    return [
        Finding(
            "published",
            "Published orderings",
            text,
            plots.png(figure),
            {"pairs": rows},
            [header, *rows],
        )
    ]


def _over_all(found: Compared, name: str) -> Estimate:
    return found.over_all(name, list(found.settings))


def _said(one: Estimate) -> str:
    return f"{one.value:.3f} ({one.low:.3f} to {one.high:.3f})"


def exploitability_and_wins(found: Compared, run: str) -> Figure:
    """Each setting by its win rate over the others and by how far it is exploited."""
    with plots.new_figure(7.0, 4.6) as figure:
        axes = figure.subplots()
        for number, name in enumerate(found.exploited):
            wins, lost = _over_all(found, name), found.exploitability(name)
            color = plots.COLORS[number % len(plots.COLORS)]
            axes.errorbar(
                lost.value,
                wins.value,
                xerr=[[lost.value - lost.low], [lost.high - lost.value]],
                yerr=[[wins.value - wins.low], [wins.high - wins.value]],
                fmt=plots.MARKERS[number % len(plots.MARKERS)],
                color=color,
                elinewidth=0.8,
            )
            axes.annotate(name, (lost.value, wins.value), (4, 4), textcoords="offset points")
        axes.axhline(0.5, color="0.6", linewidth=0.8)
        axes.set_xlabel("exploitability: what a trained best response wins, less one half")
        axes.set_ylabel("win rate over the other learners")
        plots.sign(figure, run)
        return figure
