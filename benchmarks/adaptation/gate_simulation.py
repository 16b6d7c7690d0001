"""The gate against known truth: how often it lets pass what it must not, and refuses what it should not.

    .venv/bin/python benchmarks/adaptation/gate_simulation.py            # minutes, the tables of docs/adaptation.md
    .venv/bin/python benchmarks/adaptation/gate_simulation.py --quick    # seconds

Every candidate of the ladder of policy Auto has the same true gain, drawn anew per rung (which is worse than rungs that
resemble each other: the union of independent errors is the largest). A ladder passes when one of its rungs does. Beside
it stands what one would do without statistics: pass when the observed gain is above -margin. The tests are the
product's own (``readapt_runtime.adapt.gate``). Ends with 1 when false passes exceed 1 - confidence by more than three
standard errors anywhere.
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
from readapt_runtime.adapt.gate.means import rejects
from readapt_runtime.adapt.measure import LOSS_CAP

CONFIDENCE, RUNGS = 0.95, len(ladder.RUNGS[Policy.AUTO])
EFFECTS = (0.0, 0.005, 0.01, 0.02, 0.05)
"""True losses; the margin itself, the least favourable truth, is added."""
Floats = NDArray[np.float64]
Verdicts = NDArray[np.int8]
"""1 passed, -1 failed, 0 undecided."""
Walk = Callable[["Case", float, gate.Rule, int, np.random.Generator], tuple[Verdicts, Floats]]
"""(case, true gain, rule, runs) -> verdicts and observed gains on all examples, one per run."""


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
class Row:
    """What came of one true effect."""

    case: Case
    loss: float
    passed: float
    """Share of ladders."""
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


def walk_pairs(
    case: Case, gain: float, rule: gate.Rule, runs: int, draw: np.random.Generator
) -> tuple[Verdicts, Floats]:
    """Answers that are right or wrong, twice."""
    differ = max(case.spread, abs(gain))
    shares = [(differ + gain) / 2, (differ - gain) / 2, 1 - differ]
    return _walk_counts(shares, rule, runs, draw, lambda w, lost, tied: gate.Counts(w, lost, tied))


def walk_agreement(
    case: Case, gain: float, rule: gate.Rule, runs: int, draw: np.random.Generator
) -> tuple[Verdicts, Floats]:
    """Answers that are the old pair's or not."""
    shares = [0.0, -gain, 1 + gain]
    return _walk_counts(shares, rule, runs, draw, lambda _, different, same: gate.Agreements(same, different))


def _walk_counts(
    shares: Sequence[float],
    rule: gate.Rule,
    runs: int,
    draw: np.random.Generator,
    evidence: Callable[[int, int, int], gate.Evidence],
) -> tuple[Verdicts, Floats]:
    verdicts, counts, seen = np.zeros(runs, np.int8), np.zeros((runs, 3), np.int64), 0
    for look in rule.looks():
        counts += draw.multinomial(look.samples - seen, shares, size=runs)
        seen = look.samples
        distinct, which = np.unique(counts, axis=0, return_inverse=True)
        decided = np.array([_verdict(evidence(*map(int, row)), rule, look) for row in distinct], np.int8)
        verdicts = np.where(verdicts == 0, decided[which.ravel()], verdicts)
    return verdicts, (counts[:, 0] - counts[:, 1]) / rule.samples


def _verdict(evidence: gate.Evidence, rule: gate.Rule, look: gate.Look) -> int:
    return {gate.Decision.PASS: 1, gate.Decision.FAIL: -1, gate.Decision.MORE: 0}[gate.decide(evidence, rule, look)]


def walk_f1(case: Case, gain: float, rule: gate.Rule, runs: int, draw: np.random.Generator) -> tuple[Verdicts, Floats]:
    """Most answers are alike; of the others some are lost altogether, the rest get better by a little."""
    better = 0.2
    lost = (case.spread * better - gain) / (1 + better)
    chance = draw.random((runs, rule.samples))
    gains = np.where(chance < lost, -1.0, np.where(chance < case.spread, better, 0.0))
    return _walk_gains(gains, 1.0, rule)


def walk_loss(
    case: Case, gain: float, rule: gate.Rule, runs: int, draw: np.random.Generator
) -> tuple[Verdicts, Floats]:
    """A little noise on every example, and a few that lose 3 nats, made up for by all the others."""
    shape = (runs, rule.samples)
    lost = draw.random(shape) < case.spread
    gains = draw.normal(gain + 3.0 * case.spread, 0.1, shape) - 3.0 * lost
    return _walk_gains(gains, LOSS_CAP, rule)


def _walk_gains(gains: Floats, bound: float, rule: gate.Rule) -> tuple[Verdicts, Floats]:
    verdicts = np.zeros(len(gains), np.int8)
    for look in rule.looks():
        open_runs = np.flatnonzero(verdicts == 0)
        seen = gains[open_runs, : look.samples]
        passed = rejects(seen, -rule.margin, bound, look.alpha)
        failed = rejects(-seen, rule.margin, bound, look.alpha)
        verdicts[open_runs] = np.where(passed, 1, np.where(failed, -1, 0))
    return verdicts, gains.mean(axis=1)


def simulate(case: Case, loss: float, ladders: int, seed: int, budget_rungs: int = RUNGS) -> Row:
    """``ladders`` ladders whose every rung has the true gain -``loss``; ``budget_rungs`` share the error budget."""
    rule = gate.Rule.for_policy(CONFIDENCE, case.margin, case.examples, budget_rungs)
    verdicts, observed = case.walk(case, -loss, rule, ladders * RUNGS, np.random.default_rng(seed))
    rungs, plain = verdicts.reshape(ladders, RUNGS), (observed > -case.margin).reshape(ladders, RUNGS)
    return Row(
        case,
        loss,
        passed=float((rungs == 1).any(axis=1).mean()),
        failed=float((rungs == -1).any(axis=1).mean()),
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


def run(quick: bool, ladders: int, ladders_of_means: int) -> list[Row]:
    """All cases at all true effects."""
    rows = []
    for number, case in enumerate(cases(quick)):
        count = ladders_of_means if case.walk in (walk_f1, walk_loss) else ladders
        rows += [simulate(case, loss, count, seed=1000 * number + i) for i, loss in enumerate(losses_of(case))]
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
    """Both tables and the largest rate of false passes, as Markdown."""
    worst = max((row for row in rows if not row.tolerable), key=lambda row: row.passed)
    plain = max((row for row in rows if not row.tolerable), key=lambda row: row.plain)
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
            f"Largest rate of false passes: gate {100 * worst.passed:.1f} % ({_name(worst)}), allowed "
            f"{100 * (1 - CONFIDENCE):.0f} %; plain threshold {100 * plain.plain:.1f} % ({_name(plain)}).",
        ]
    )


def _passes(row: Row) -> str:
    text = f"{100 * row.passed:.1f} / {100 * row.plain:.0f}"
    return text if row.tolerable else f"**{text}**"


def _name(row: Row) -> str:
    case = row.case
    return f"{case.kind}, {case.examples:,} examples, margin {100 * case.margin:.0f}, true loss {100 * row.loss:.1f}"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer examples and ladders")
    options = parser.parse_args(arguments)
    rows = run(options.quick, *((1000, 150) if options.quick else (20_000, 1000)))
    sys.stdout.write("\n" + report(rows) + "\n")
    return 0 if all(row.sound for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
