"""Retention as a number: 1 is the new base, 0 the old one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from readapt_runtime.adapt.retention import Retention, Yardstick, floor, holds, retention

DIGEST = f"sha256:{'0' * 64}"


def yardstick(old: list[float], new: list[float]) -> Yardstick:
    return Yardstick(
        old_base=DIGEST,
        new_base=DIGEST,
        seed=0,
        tokens=tuple((1, 2) for _ in old),
        old_losses=tuple(old),
        new_losses=tuple(new),
    )


OLD, NEW = [3.0, 3.5, 2.5, 3.2], [1.0, 1.2, 0.9, 1.3]


@pytest.mark.parametrize(
    ("losses", "expected"),
    [(NEW, 1.0), (OLD, 0.0), ([(o + n) / 2 for o, n in zip(OLD, NEW, strict=True)], 0.5), ([5.0] * 4, -1.0)],
)
def test_retention_runs_from_the_old_base_to_the_new_one(losses: list[float], expected: float) -> None:
    found = retention(yardstick(OLD, NEW), losses)
    assert found is not None
    assert math.isclose(found.value, expected, abs_tol=0.03)


def test_it_is_not_measured_where_the_bases_differ_by_less_than_two_standard_errors() -> None:
    assert retention(yardstick([1.0, 3.0, 2.0], [2.0, 1.9, 1.9]), [1.0] * 3) is None
    assert retention(yardstick(NEW, OLD), NEW) is None
    assert retention(yardstick(OLD, OLD), NEW) is None


def test_text_is_drawn_until_the_distance_of_the_bases_is_known_or_there_is_enough_of_it() -> None:
    clear = yardstick([3.0, 3.05] * 8, [1.0, 1.02] * 8)
    vague = yardstick([3.0, 1.0] * 8, [1.0, 1.1] * 8)
    assert clear.settled
    assert not vague.settled
    assert vague.error == pytest.approx(float(np.std([2.0, -0.1] * 8, ddof=1)) / 4)
    whole = vague.longer(vague).longer(vague).longer(vague)
    assert whole.settled
    assert whole.tokens[:16] == vague.tokens
    assert len(whole.tokens) == len(whole.old_losses) == len(whole.new_losses) == 64


def test_the_standard_error_is_that_of_repeated_samples() -> None:
    draw = np.random.default_rng(0)

    def once() -> tuple[float, float]:
        new = draw.normal(1.0, 0.2, 64)
        old, losses = new + draw.normal(2.0, 0.5, 64), new + draw.normal(0.4, 0.3, 64)
        found = retention(yardstick(list(old), list(new)), list(losses))
        assert found is not None
        return found.value, found.standard_error

    values, errors = zip(*(once() for _ in range(300)), strict=True)
    assert math.isclose(float(np.std(values)), float(np.mean(errors)), rel_tol=0.15)


@pytest.mark.parametrize(
    ("of_copy", "expected"),
    [(Retention(0.8, 0.01), 0.72), (Retention(-0.1, 0.01), None), (Retention(0.0, 0.01), None), (None, None)],
)
def test_the_floor_is_a_share_of_what_copy_keeps(of_copy: Retention | None, expected: float | None) -> None:
    least = floor(0.9, of_copy)
    assert least == (None if expected is None else pytest.approx(expected))


def test_without_a_floor_retention_is_only_reported() -> None:
    assert holds(Retention(-5.0, 0.1), None)
    assert holds(None, 0.5)
    assert holds(Retention(0.5, 0.1), 0.5)
    assert not holds(Retention(0.49, 0.1), 0.5)
