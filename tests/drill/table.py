"""The drill's results as Markdown."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def markdown(rows: Sequence[Row]) -> str:
    """Tables of kills by job and by moment, of damages and disks, and what failed."""
    kills = [row for row in rows if row["family"] == "kill"]
    parts = []
    if kills:
        parts += [_by_job(kills), _by_moment(kills)]
    for family, title in (("damage", "damage"), ("disk", "fault")):
        found = [row for row in rows if row["family"] == family]
        if found:
            parts.append(_by_damage(found, title))
    failed = [row for row in rows if row["why"]]
    lines = [f"- `{row['case']}` {_what(row)}: {row['why']}" for row in failed]
    return "\n".join([*parts, f"{len(failed)} of {len(rows)} cases failed.", *lines, ""])


def _what(row: Row) -> str:
    if row["family"] != "kill":
        return f"{row['job']}, {row['damage']}"
    moments = [f"{one['action']} {one['where']}" for one in row["kills"]]
    return f"{row['job']}, {' and '.join(moments) or 'not killed'}"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def _by_job(kills: Sequence[Row]) -> str:
    lines, totals = [], Counter[str]()
    for job in dict.fromkeys(row["job"] for row in kills):
        cases = [row for row in kills if row["job"] == job]
        signals = Counter(one["action"] for row in cases for one in row["kills"])
        same = sum(not row["why"] for row in cases)
        counts = {
            "SIGKILL": signals["SIGKILL"],
            "SIGTERM": signals["SIGTERM"],
            "runs": len(cases),
            "same": same,
            "failed": len(cases) - same,
        }
        totals.update(counts)
        lines.append([job, *counts.values()])
    head = ["job", "SIGKILL", "SIGTERM", "runs", "same end, bit by bit", "failed"]
    return _table(head, [*lines, ["all", *(totals[name] for name in counts)]])


def _by_moment(kills: Sequence[Row]) -> str:
    met = Counter(one["where"] for row in kills for one in row["kills"])
    failed = Counter(row["kills"][-1]["where"] for row in kills if row["why"] and row["kills"])
    lines = [[where, count, failed[where]] for where, count in met.most_common()]
    return _table(["killed", "times", "failed"], lines)


def _by_damage(rows: Sequence[Row], title: str) -> str:
    kinds = dict.fromkeys(row["damage"].partition(": at ")[0] for row in rows)
    lines = []
    for kind in sorted(kinds):
        ends = Counter(row["end"] for row in rows if row["damage"].partition(": at ")[0] == kind)
        lines.append([kind, *(ends[end] for end in ("survived", "refused", "failed"))])
    ends = Counter(row["end"] for row in rows)
    lines.append(["all", *(ends[end] for end in ("survived", "refused", "failed"))])
    return _table([title, "same end", "refused in a sentence", "failed"], lines)
