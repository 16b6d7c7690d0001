"""The gate against known truth: how often it lets pass what it must not, and refuses what it should not.

    .venv/bin/python benchmarks/adaptation/gate_simulation.py            # minutes, the tables of docs/adaptation.md
    .venv/bin/python benchmarks/adaptation/gate_simulation.py --quick    # seconds

Every candidate of the ladder of policy Auto has the same true gain, drawn anew per rung (which is worse than rungs that
resemble each other: the union of independent errors is the largest); ``--rungs 6`` is that of an adapter which learned
task after task. A ladder passes when one of its rungs does. Beside it stands what one would do without statistics: pass
when the observed gain is above -margin. The tests are the product's own (``readapt_runtime.adapt.gate``). What it costs
and saves that an exam ends when it would hardly pass any more is told from the same draws with and without. Ends with 1
when false passes exceed 1 - confidence by more than three standard errors anywhere.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from readapt_api.adaptation import Policy
from readapt_runtime.adapt import gate, ladder
from readapt_runtime.adapt.gate.means import chances, rejects
from readapt_runtime.adapt.gate.rule import HOPELESS
from readapt_runtime.adapt.measure import LOSS_CAP

CONFIDENCE, RUNGS = 0.95, len(ladder.RUNGS[Policy.AUTO])
EFFECTS = (0.0, 0.005, 0.01, 0.02, 0.05)
"""True losses; the margin itself, the least favourable truth, is added."""
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Walk = Callable[["Case", float, gate.Rule, int, np.random.Generator], "Exams"]
"""(case, true gain, rule, runs) -> as many exams."""
_VERDICTS = {gate.Decision.PASS: 1, gate.Decision.FAIL: -1, gate.Decision.MORE: 0, gate.Decision.FUTILE: 2}


@dataclass(frozen=True)
class Case:
    """One kind of evidence under one rule."""

    kind: str
    walk: Walk
    margin: float
    examples: int
    spread: float = 0.0
    """Pairs: share of examples on which the pairs differ. F1: the same. Token loss: share of examples that are lost."""


@dataclass(frozen=True)
class Exams:
    """One rung each, on the same examples with and without hope."""

    verdicts: Integers
    """Of the whole exam: 1 passed, -1 failed, 0 undecided."""
    asked: Integers
    """Examples until then."""
    hopeless: Integers
    """Examples after which it would hardly pass any more; at least ``asked`` where it never came to that."""
    gains: Floats
    """Observed on all examples."""

    @classmethod
    def walk(cls, rule: gate.Rule, gains: Floats, look: Callable[[gate.Look, Integers], Integers]) -> Exams:
        """``look`` has the verdicts, as numbers of ``_VERDICTS``, of those runs at one look that are not decided."""
        verdicts = np.zeros(len(gains), np.int64)
        asked, hopeless = np.full((2, len(gains)), rule.samples)
        for at in rule.looks():
            going = np.flatnonzero(verdicts == 0)
            found = look(at, going)
            decided = going[abs(found) == 1]
            verdicts[decided], asked[decided] = found[abs(found) == 1], at.samples
            hopeless[going[found == 2]] = np.minimum(hopeless[going[found == 2]], at.samples)
        return cls(verdicts, asked, hopeless, gains)

    def curtailed(self, rungs: int) -> Exams:
        """As the rungs of ladders end them: all but the last of each may."""
        ends = (self.hopeless < self.asked) & (np.arange(len(self.asked)) % rungs != rungs - 1)
        verdicts, asked = np.where(ends, 0, self.verdicts), np.where(ends, self.hopeless, self.asked)
        return Exams(verdicts, asked, self.hopeless, self.gains)

    def climbed(self, rungs: int) -> tuple[float, float]:
        """Share of ladders that pass, and the examples that one asks on average, up to the rung that passes."""
        passed = self.verdicts.reshape(-1, rungs) == 1
        tried = np.cumsum(passed, axis=1) - passed == 0
        return float(passed.any(axis=1).mean()), float((self.asked.reshape(-1, rungs) * tried).sum(axis=1).mean())


@dataclass(frozen=True)
class Row:
    """What came of one true effect."""

    case: Case
    loss: float
    passed: float
    """Share of ladders."""
    asked: float
    """Examples of a ladder, on average."""
    whole_passed: float
    """Share of ladders whose exams end only when they are decided."""
    whole_asked: float
    failed: float
    """Share of ladders with a rung that failed."""
    plain: float
    """Share of ladders that pass without statistics."""
    ladders: int

    @property
    def tolerable(self) -> bool:
        """Whether a pass is right."""
        return self.loss < self.case.margin - 1e-12

    @property
    def sound(self) -> bool:
        budget = 1 - CONFIDENCE
        return self.tolerable or self.passed <= budget + 3 * math.sqrt(budget * (1 - budget) / self.ladders)


def walk_pairs(case: Case, gain: float, rule: gate.Rule, runs: int, draw: np.random.Generator) -> Exams:
    """Answers that are right or wrong, twice."""
    differ = max(case.spread, abs(gain))
    shares = [(differ + gain) / 2, (differ - gain) / 2, 1 - differ]
    return _walk_counts(shares, rule, runs, draw, lambda w, lost, tied: gate.Counts(w, lost, tied))


def walk_agreement(case: Case, gain: float, rule: gate.Rule, runs: int, draw: np.random.Generator) -> Exams:
    """Answers that are the old pair's or not."""
    shares = [0.0, -gain, 1 + gain]
    return _walk_counts(shares, rule, runs, draw, lambda _, different, same: gate.Agreements(same, different))


def _walk_counts(
    shares: Sequence[float],
    rule: gate.Rule,
    runs: int,
    draw: np.random.Generator,
    evidence: Callable[[int, int, int], gate.Evidence],
) -> Exams:
    looks = [look.samples for look in rule.looks()]
    drawn = [draw.multinomial(more, shares, size=runs) for more in np.diff(looks, prepend=0)]
    counts = dict(zip(looks, np.cumsum(drawn, axis=0), strict=True))

    def look(at: gate.Look, going: Integers) -> Integers:
        distinct, which = np.unique(counts[at.samples][going], axis=0, return_inverse=True)
        found = [_VERDICTS[gate.decide(evidence(*map(int, row)), rule, at)] for row in distinct]
        return np.array(found, np.int64)[which.ravel()]

    last = counts[rule.samples]
    return Exams.walk(rule, (last[:, 0] - last[:, 1]) / rule.samples, look)


def walk_f1(case: Case, gain: float, rule: gate.Rule, runs: int, draw: np.random.Generator) -> Exams:
    """Most answers are alike; of the others some are lost altogether, the rest get better by a little."""
    better = 0.2
    lost = (case.spread * better - gain) / (1 + better)
    chance = draw.random((runs, rule.samples))
    gains = np.where(chance < lost, -1.0, np.where(chance < case.spread, better, 0.0))
    return _walk_gains(gains, 1.0, rule)


def walk_loss(case: Case, gain: float, rule: gate.Rule, runs: int, draw: np.random.Generator) -> Exams:
    """A little noise on every example, and a few that lose 3 nats, made up for by all the others."""
    shape = (runs, rule.samples)
    lost = draw.random(shape) < case.spread
    gains = draw.normal(gain + 3.0 * case.spread, 0.1, shape) - 3.0 * lost
    return _walk_gains(gains, LOSS_CAP, rule)


def _walk_gains(gains: Floats, bound: float, rule: gate.Rule) -> Exams:
    """``decide``, for all runs at once."""

    def look(at: gate.Look, going: Integers) -> Integers:
        seen = gains[going, : at.samples]
        passed = rejects(seen, -rule.margin, bound, at.alpha)
        failed = rejects(-seen, rule.margin, bound, at.alpha)
        later = [other for other in rule.looks() if other.samples > at.samples]
        hope = [chances(seen, -rule.margin, bound, other.alpha, other.samples) for other in later]
        hopeless = (np.sum(hope, axis=0) < HOPELESS) & bool(later)
        return np.select([passed, failed, hopeless], [1, -1, 2], 0)

    return Exams.walk(rule, gains.mean(axis=1), look)


def simulate(
    case: Case, loss: float, ladders: int, seed: int, rungs: int = RUNGS, budget_rungs: int | None = None
) -> Row:
    """Ladders whose every rung has the true gain -``loss``; ``budget_rungs``, None: all, share the error budget."""
    rule = gate.Rule.for_policy(CONFIDENCE, case.margin, case.examples, budget_rungs or rungs, last=False)
    whole = case.walk(case, -loss, rule, ladders * rungs, np.random.default_rng(seed))
    exams = whole.curtailed(rungs)
    (passed, asked), (whole_passed, whole_asked) = exams.climbed(rungs), whole.climbed(rungs)
    failed, plain = (
        per_exam.reshape(ladders, rungs) for per_exam in (exams.verdicts == -1, whole.gains > -case.margin)
    )
    return Row(
        case,
        loss,
        passed=passed,
        asked=asked,
        whole_passed=whole_passed,
        whole_asked=whole_asked,
        failed=float(failed.any(axis=1).mean()),
        plain=float(plain.any(axis=1).mean()),
        ladders=ladders,
    )


def cases(quick: bool) -> Iterator[Case]:
    """Margins of 1 and 3 points; few and many examples."""
    sizes = (200, 1000) if quick else (200, 1000, 3000)
    for examples in sizes:
        for margin in (0.01, 0.03):
            for differ in (0.03, 0.1, 0.3):
                yield Case("right or wrong", walk_pairs, margin, examples, differ)
            yield Case("agreement", walk_agreement, margin, examples)
            for differ in (0.05, 0.3):
                yield Case("F1", walk_f1, margin, examples, differ)
            for lost in (0.0, 0.01):
                yield Case("token loss", walk_loss, margin, examples, lost)


def losses_of(case: Case) -> tuple[float, ...]:
    return tuple(sorted({*EFFECTS, case.margin}))


def run(quick: bool, ladders: int, ladders_of_means: int, rungs: int = RUNGS) -> list[Row]:
    """All cases at all true effects."""
    rows = []
    for number, case in enumerate(cases(quick)):
        count = ladders_of_means if case.walk in (walk_f1, walk_loss) else ladders
        truths = enumerate(losses_of(case))
        rows += [simulate(case, loss, count, seed=1000 * number + i, rungs=rungs) for i, loss in truths]
        sys.stderr.write(f"\r{number + 1} cases ")
    return rows


def table(rows: Sequence[Row], value: Callable[[Row], str]) -> str:
    """One line per case, one column per true loss."""
    losses = sorted({row.loss for row in rows})
    head = ["evidence", "margin", "differ", "examples", *(f"{100 * loss:.1f}" for loss in losses)]
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join(["---"] * len(head)) + " |"]
    for case in dict.fromkeys(row.case for row in rows):
        cells = {row.loss: value(row) for row in rows if row.case == case}
        spread = f"{100 * case.spread:.0f} %" if case.kind != "agreement" else "–"
        lead = [case.kind, f"{100 * case.margin:.0f}", spread, f"{case.examples:,}"]
        lines.append("| " + " | ".join([*lead, *(cells.get(loss, "") for loss in losses)]) + " |")
    return "\n".join(lines)


def report(rows: Sequence[Row]) -> str:
    """All tables and the extremes, as Markdown."""
    worst = max((row for row in rows if not row.tolerable), key=lambda row: row.passed)
    plain = max((row for row in rows if not row.tolerable), key=lambda row: row.plain)
    dearest = max((row for row in rows if row.tolerable), key=lambda row: row.whole_passed - row.passed)
    saved = 1 - sum(row.asked for row in rows) / sum(row.whole_asked for row in rows)
    return "\n".join(
        [
            "Ladders that pass, percent: gate / plain threshold. Columns: the true loss in points (token loss:",
            "hundredths of a nat); bold where a pass is false.",
            "",
            table(rows, _passes),
            "",
            "Ladders with a rung that fails although its true loss is within the margin, percent (the others that do",
            "not pass are undecided).",
            "",
            table([row for row in rows if row.tolerable], lambda row: f"{100 * row.failed:.1f}"),
            "",
            "Ending exams that would hardly pass any more, against ending those alone that are decided: ladders that",
            "pass, in points more; examples that a ladder asks, in percent.",
            "",
            table(rows, _cost),
            "",
            f"Largest loss of passes that are right: {100 * (dearest.whole_passed - dearest.passed):.1f} points "
            f"({_name(dearest)}); examples saved over all rows {100 * saved:.0f} %.",
            "",
            f"Largest rate of false passes: gate {100 * worst.passed:.1f} % ({_name(worst)}), allowed "
            f"{100 * (1 - CONFIDENCE):.0f} %; plain threshold {100 * plain.plain:.1f} % ({_name(plain)}).",
        ]
    )


def _passes(row: Row) -> str:
    text = f"{100 * row.passed:.1f} / {100 * row.plain:.0f}"
    return text if row.tolerable else f"**{text}**"


def _cost(row: Row) -> str:
    text = f"{100 * (row.passed - row.whole_passed):+.1f} / {100 * row.asked / row.whole_asked:.0f}"
    return text if row.tolerable else f"**{text}**"


def _name(row: Row) -> str:
    case = row.case
    return f"{case.kind}, {case.examples:,} examples, margin {100 * case.margin:.0f}, true loss {100 * row.loss:.1f}"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer examples and ladders")
    parser.add_argument("--rungs", type=int, default=RUNGS, metavar="N", help=f"of a ladder (default: {RUNGS})")
    options = parser.parse_args(arguments)
    rows = run(options.quick, *((1000, 150) if options.quick else (20_000, 1000)), options.rungs)
    sys.stdout.write("\n" + report(rows) + "\n")
    return 0 if all(row.sound for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
