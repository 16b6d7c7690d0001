"""What a study has to say about the numbers that re-adaptation was to reach, each over the whole study.

In: the rows. Out: Markdown, one line per number: what was found, with Student's interval at 95 % over (case, seed), and
what was to be reached. *Alone* counts all of a way's own cost: search, yardstick, replay text and drift of the base
pair, the old pair's answers.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from intervals import LEVEL, half_width, mean_with_interval, ratio_with_interval
from scipy.stats import binomtest
from study_rows import Case, Row, by_case, complete, of_way, seconds_of_pair
from tabular import markdown

OURS, SCRATCH, TUNED = "ours", "scratch", "Copy+tuning"
SLOWER = 1.1
"""Times the seconds of Copy and tuning; more is slower."""
Group = tuple[str, str, int]
"""(move, task, training examples)"""


def targets(rows: Sequence[Row]) -> str:
    of_pair = seconds_of_pair(rows)

    def alone(row: Row) -> float:
        return row.with_shared(of_pair[row.move])

    lines = [*_readiness(rows, alone), *_at_equal_compute(rows, alone), *_policy(rows, alone)]
    return markdown(["what", "found", "to reach"], lines)


def _readiness(rows: Sequence[Row], alone: Callable[[Row], float]) -> Iterator[list[str]]:
    ours = of_way(rows, OURS)
    for way, wanted in ((SCRATCH, "≥ 5"), (TUNED, f"≥ {1 / SLOWER:.2f} in every case")):
        other = of_way(rows, way)
        both = [case for case in other if case in ours and other[case].passed and ours[case].passed]
        ratios = [alone(other[case]) / alone(ours[case]) for case in both]
        told = f"{ratio_with_interval(ratios)} in {len(both)} where both got ready"
        yield [f"seconds to readiness, {way} ÷ ours, alone", told, wanted]
        met = [case for case in other if case in ours]
        only = [sum(a[c].passed and not b[c].passed for c in met) for a, b in ((ours, other), (other, ours))]
        yield [f"ready: ours alone, {way} alone, of all", f"{only[0]}, {only[1]}, {len(met)}", ""]
    yield [f"cases where ours is slower than {TUNED} by more than 10 %, alone", _named(_slower(rows, alone)), "none"]


def _slower(rows: Sequence[Row], alone: Callable[[Row], float]) -> Iterator[tuple[Group, str]]:
    """By the mean over the seeds where both got ready; cases where only the other did are slower too."""
    ours, tuned = of_way(rows, OURS), of_way(rows, TUNED)
    for group, cases in _groups(case for case in tuned if case in ours).items():
        both = [case for case in cases if ours[case].passed and tuned[case].passed]
        missed = sum(tuned[case].passed and not ours[case].passed for case in cases)
        ratio = statistics.geometric_mean(alone(ours[c]) / alone(tuned[c]) for c in both) if both else 0.0
        if ratio > SLOWER or missed:
            yield group, f"× {ratio:.2f}" + (f", {missed} not ready" if missed else "")


def _at_equal_compute(rows: Sequence[Row], alone: Callable[[Row], float]) -> Iterator[list[str]]:
    """Score of ours less that of the best checkpoint that plain tuning had when ours ended.

    Both on all examples of the gate, which no checkpoint was chosen by; Copy's where ours did not get ready.
    """
    for title, clock in (("without what is shared", lambda row: row.seconds), ("alone", alone)):
        gains = gains_at_equal_compute(rows, clock)
        told = f"{mean_with_interval([100 * gain for gain in gains.values()], sign=True)} points, {len(gains)} cases"
        yield [f"score of ours less {TUNED} at equal compute, {title}", told, "≥ +1"]
        yield [f"cases worse beyond their interval, {title}", _named(worse_beyond(gains)), "none"]


def gains_at_equal_compute(rows: Sequence[Row], clock: Callable[[Row], float]) -> Mapping[Case, float]:
    """Per case; ``clock`` says which seconds of a way count, what it adds to those of the row comes first."""
    ours, tuned = of_way(rows, OURS), of_way(rows, TUNED)
    gains = {}
    for case, row in tuned.items():
        if case in ours and row.tested:
            before = clock(row) - row.seconds
            gains[case] = ours[case].score - row.tested_at(max(0.0, clock(ours[case]) - before))
    return gains


def worse_beyond(gains: Mapping[Case, float]) -> Iterator[tuple[Group, str]]:
    """Cases whose interval over the seeds lies below zero."""
    for group, cases in _groups(gains).items():
        values = [100 * gains[case] for case in cases]
        if statistics.fmean(values) + half_width(values) < 0:
            yield group, f"{mean_with_interval(values, sign=True)} points"


def _policy(rows: Sequence[Row], alone: Callable[[Row], float]) -> Iterator[list[str]]:
    whole = complete(rows)
    best = {case: max(row.score for row in group) for case, group in by_case(whole).items()}
    ours, scratch = of_way(whole, OURS), of_way(whole, SCRATCH)
    regrets = [100 * (best[case] - row.score) for case, row in ours.items()]
    yield ["regret of the decision policy", f"{mean_with_interval(regrets)} points, {len(regrets)} cases", "≤ 0.4"]
    if scratch:
        ratio = sum(map(alone, ours.values())) / sum(map(alone, scratch.values()))
        yield ["its compute ÷ that of always retraining, alone", f"{ratio:.2f}", "≤ 0.33"]


def false_passes(rows: Sequence[Row]) -> str:
    """Of the variants that passed, how many lose more than the margin on test examples that the gate had not looked at.

    These are the rest of the gate's examples when it decided before the last, and test examples beyond the gate's. A
    loss measured on few examples scatters: *surely* counts those whose interval at 95 % lies beyond the margin. The
    share's interval is Clopper and Pearson's. Copy counts once however many examples there are to repair with.
    """
    head = ["way", "passed", "checked", "examples each", "lose more", "share", "surely", "mean gain, points"]
    every = list(_once(row for row in rows if row.passed))
    lines = []
    for way in dict.fromkeys(row.way for row in every):
        passed = [row for row in every if row.way == way]
        found = [(row.margin, row.unseen) for row in passed if row.unseen is not None]
        lose = sum(unseen["gain"] < -margin for margin, unseen in found)
        surely = sum(unseen["gain"] + 1.96 * unseen["error"] < -margin for margin, unseen in found)
        counts = [unseen["examples"] for _, unseen in found]
        gains = mean_with_interval([100 * unseen["gain"] for _, unseen in found], sign=True)
        mean = f"{statistics.fmean(counts):.0f}" if counts else "–"
        lines.append(
            [way, str(len(passed)), str(len(found)), mean, str(lose), _share(lose, len(found)), str(surely), gains]
        )
    return markdown(head, lines)


def _once(rows: Iterable[Row]) -> Iterator[Row]:
    seen = set()
    for row in rows:
        key = (row.move, row.task, row.seed) if row.way == "Copy" else (row.case, row.way)
        if key not in seen:
            seen.add(key)
            yield row


def _share(count: int, of: int) -> str:
    if not of:
        return "–"
    interval = binomtest(count, of).proportion_ci(LEVEL)
    return f"{100 * count / of:.0f} % ({100 * interval.low:.0f} to {100 * interval.high:.0f})"


def _groups(cases: Iterable[Case]) -> dict[Group, list[Case]]:
    groups: dict[Group, list[Case]] = {}
    for case in cases:
        groups.setdefault(case[:3], []).append(case)
    return groups


def _named(found: Iterable[tuple[Group, str]]) -> str:
    return "; ".join(f"{' '.join(map(str, group))}: {told}" for group, told in found) or "none"
