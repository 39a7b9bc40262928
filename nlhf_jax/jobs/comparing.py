"""The study of learners: each is trained from several seeds, and all are set side by side.

A chain, `studies/paper_table.gin`: raters once; every learner from every seed; a tournament of all
of them, judged by the population; a best response to each; and at the end the answers in words
(`nlhf_jax.studies.paper_table`).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from nlhf_jax import processes
from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.exploited import of_tournament
from nlhf_jax.evaluation.intervals import Estimate
from nlhf_jax.evaluation.results import TournamentResult
from nlhf_jax.evaluation.seeds import over_seeds, settings_of
from nlhf_jax.files import absolute
from nlhf_jax.jobs.exploiting import POLICY, RESPONSE
from nlhf_jax.jobs.match import RESULT
from nlhf_jax.report import findings, plots
from nlhf_jax.report.findings import Finding
from nlhf_jax.studies import paper_table, paper_table_plots
from nlhf_jax.studies.paper_table import Compared


def stages(
    before: Sequence[Mapping[str, Any]],
    learners: Mapping[str, Mapping[str, Any]],
    only: Sequence[str] | None,
    seeds: int,
    exploited_seeds: int,
    exploit: Mapping[str, Any],
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
      exploit: macros of `exploit.gin`.
      tournament, summary: gin files of the tournament of all runs, and of `comparison`.
      rater: checkpoint of the preference model.
      reference: that of the SFT policy, which plays as well.

    Raises:
      UserError: `only` names none of `learners`, or there are no seeds.
    """
    if seeds < 1:
        raise UserError(f"SEEDS is {seeds} but must be at least 1")
    unknown = [name for name in only or () if name not in learners]
    if unknown:
        raise UserError(f"ONLY names {unknown[0]!r}, but the learners are {', '.join(learners)}")
    shared = {"INITIAL_CHECKPOINT": reference, "RATER_CHECKPOINT": rater}
    found, players = list(before), {"SFT": reference}
    for seed in range(seeds):
        for name in learners if only is None else only:
            learner, stage = learners[name], _as_file(f"{name}#{seed}")
            macros = {**shared, **learner.get("macros", {}), "SEED": seed}
            found.append(_stage(stage, "train", learner["gin_file"], macros))
            for setting, suffix in {name: "", **learner.get("also", {})}.items():
                players[f"{setting}#{seed}"] = f"stage:{stage}{suffix}"
    found.append(_stage("tournament", "evaluate", tournament, {"PLAYERS": players}))

    met = [run for run in players if int(run.partition("#")[2] or 0) < exploited_seeds]
    if met:
        macros = {"POLICIES": {_as_file(run): players[run] for run in met}, **exploit}
        found.append(_stage("exploit", "exploit", "exploit.gin", macros))
    judged = {run: f"stage:exploit/chain/judged_{_as_file(run)}" for run in met}
    macros = {"TOURNAMENT_DIR": "stage:tournament", "JUDGED": judged}
    found.append(_stage("comparison", "comparison", summary, macros))
    return [*found, {"name": "report", "job": "report"}]


def _stage(name: str, job: str, gin_file: str, macros: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": name, "job": job, "gin_file": gin_file, "macros": dict(macros)}


def _as_file(run: str) -> str:
    """A run's name as that of a stage: `EMA1*#0` is `EMA1_average_0`."""
    return re.sub(r"[#.-]", "_", run.replace("*", "_average"))


def comparison(workdir: str, tournament: str, judged: Mapping[str, str]) -> None:
    """The answers, the learners, and the published orderings, in `workdir/findings.json`.

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
    run = absolute(epath.Path(workdir)).parent.name
    findings.save(epath.Path(workdir), list(_findings(Compared(runs, values, alone), run)))


def _findings(found: Compared, run: str) -> Iterator[Finding]:
    answers = list(paper_table.answers(found))
    yield Finding(
        "answers",
        "What the study says",
        "Every number has its 95 % interval over runs: what other seeds would give.",
        plots.png(paper_table_plots.exploitability_and_wins(found, run)),
        {"answers": [vars(answer) for answer in answers]},
        [["Question", "Answer", "Numbers"], *([*vars(answer).values()] for answer in answers)],
        " ".join(f"{answer.question} {answer.short}." for answer in answers),
    )
    rates = over_seeds(found.runs, found.settings)
    yield Finding(
        "learners",
        "The learners",
        "Means over all pairs of runs, on the same prompts; exploitability is what a best response,"
        " trained against a run for a fixed number of steps, wins above one half.",
        plots.png(plots.heat_map(rates, run)),
        {"names": rates.names, "rates": rates.rate.tolist()},
        _table(found),
    )
    compared = list(paper_table.orderings(found))
    if compared:
        yield Finding(
            "published",
            "Published orderings",
            "Rates of the paper’s Table 1 (PaLM 2 as the judge) and of Calandriello et al. 2024,"
            " and of the same pairs here. Those within .023 of one half, which is the paper’s own"
            " interval, have no order.",
            plots.png(paper_table_plots.published_and_found(compared, run)),
            {"pairs": [[one, other, rate] for one, other, rate, *_ in compared]},
            [
                ["Pair", "Published", "Here", "The ordering"],
                *(
                    [f"{one} over {other}", f"{published:.3f}", str(rate), verdict]
                    for one, other, published, rate, verdict in compared
                ),
            ],
        )


def _table(found: Compared) -> list[list[str]]:
    rows = [["Learner", "Runs", "Win rate over the others", "Exploitability", "Loses most to"]]
    for name in sorted(found.settings, key=lambda name: -found.over_all(name).value):
        exploitable = str(found.exploitability(name)) if name in found.exploited else "–"
        wins, worst = str(found.over_all(name)), found.hardest_opponent(name)
        loses = f"{worst}, {found.between(worst, name)}"
        rows.append([name, str(len(found.settings[name])), wins, exploitable, loses])
    return rows
