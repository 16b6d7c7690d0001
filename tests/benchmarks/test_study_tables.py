"""A study's tables and plots say what its rows say; the expected numbers are computed by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from cases import Plan
from intervals import half_width, mean_with_interval, ratio_with_interval
from study_charts import over_time, plot_study
from study_curves import area, horizon_of, offered
from study_rows import Row, complete, read_rows, seconds_of_pair, write_row
from study_tables import areas, policy, scores, seconds, tables

from readapt_testing import study_row


def row(way: str, seed: int = 0, **more: Any) -> Row:
    return study_row.row(way, seed, **{"begin": 0.5, "end": 0.9, **more})


def cells(table: str, way: str) -> list[str]:
    (line,) = (line for line in table.splitlines() if f"| {way} |" in line)
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_area_is_what_was_offered_second_by_second() -> None:
    """0.5 for 10 s, 0.7 for 10 s (the worse checkpoint at 15 s is not offered), 0.9 for the other 20 s."""
    found = row("ours", seconds=20.0, curve=[(10.0, 0.7), (15.0, 0.6)])
    assert area(found, 40.0) == pytest.approx((10 * 0.5 + 10 * 0.7 + 20 * 0.9) / 40)
    assert [offered(found, second) for second in (0.0, 10.0, 19.9, 20.0, 99.0)] == [0.5, 0.7, 0.7, 0.9, 0.9]


def test_area_up_to_a_moment_before_the_end_ignores_the_end() -> None:
    found = row("scratch", seconds=50.0, begin=0.1, curve=[(10.0, 0.3)], end=0.8)
    assert area(found, 20.0) == pytest.approx((10 * 0.1 + 10 * 0.3) / 20)


def test_ways_are_compared_up_to_where_the_slowest_ends() -> None:
    rows = [row("ours", seconds=20.0), row("scratch", seconds=80.0, begin=0.1, end=0.9)]
    assert horizon_of(rows) == 80.0
    assert cells(areas(rows), "ours")[4:] == ["80.0", "90.0", "+0.0"]
    # At 20 s scratch is where it began: 0.1 for all of its 80 s.
    assert cells(areas(rows), "scratch")[4:] == ["10.0", "90.0", "+80.0"]


def test_rows_without_times_are_in_no_table_over_time() -> None:
    old = [row("ours", begin=None, end=None, curve=[(0.0, 0.9)]), row("scratch", seconds=80.0)]
    assert "| ours |" not in areas(old)
    assert cells(areas(old), "scratch")[-1] == "–"


def test_intervals_are_students() -> None:
    """Of 1, 2, 3: the standard deviation is 1, the quantile with two degrees of freedom 4.303."""
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(4.302653 / math.sqrt(3))
    assert mean_with_interval([1.0, 2.0, 3.0], sign=True) == "+2.0 ± 2.5"
    assert mean_with_interval([1.0]) == "1.0"


def test_ratios_are_averaged_as_ratios() -> None:
    """Twice as fast and half as fast are as fast."""
    assert ratio_with_interval([2.0, 0.5]).startswith("1.00 (")
    assert ratio_with_interval([2.0]) == "2.00"
    assert ratio_with_interval([]) == "–"


def test_scores_are_those_of_all_seeds() -> None:
    rows = [row("Copy", seed, old_score=0.9, score=0.8 + 0.01 * seed, passed=seed == 2) for seed in (0, 1, 2)]
    assert cells(scores(rows), "Copy") == [
        *("harder", "intents", "200", "Copy", "3", "90.0 ± 0.0", "81.0 ± 2.5", "-9.0 ± 2.5", "0.90 ± 0.00", "1/3")
    ]


def test_seconds_over_ours_are_of_cases_where_both_got_ready() -> None:
    rows = [
        row("ours", 0, seconds=50.0),
        row("scratch", 0, seconds=200.0),
        row("ours", 1, seconds=50.0),
        row("scratch", 1, seconds=400.0, passed=False),
    ]
    found = cells(seconds(rows), "scratch")
    # Alone each has the old pair's answers beside: (200 + 10) / (50 + 10).
    assert found[6:9] == ["4.00", "3.50", "1/2"]


def test_what_is_shared_is_told_apart_and_counted_for_those_who_use_it() -> None:
    """The yardstick was made in the first case: 30 s and 5 s of text; the second case found it there."""
    made = {"yardstick": 30.0, "replay": 5.0, "old answers": 10.0}
    rows = [
        row("ours", 0, seconds=50.0, shared=made),
        row("ours", 1, seconds=50.0, shared={"yardstick": 0.1, "replay": 0.0, "old answers": 10.0}),
        row("scratch", 0, seconds=200.0, shared=made),
    ]
    assert seconds_of_pair(rows) == {"harder": 35.0}
    assert cells(seconds(rows), "ours")[4:6] == ["50 ± 0", "95 ± 0"]
    assert cells(seconds(rows), "scratch")[4:8] == ["200", "210", "4.00", f"{210 / 95:.2f}"]


def test_drift_belongs_to_the_pair_and_to_those_who_search() -> None:
    made = {"yardstick": 30.0, "replay": 5.0, "drift": 2.0, "old answers": 10.0}
    rows = [row(way, shared=made) for way in ("ours", "ReLoRA", "Refresh", "Copy", "Copy+tuning", "scratch")]
    assert seconds_of_pair(rows) == {"harder": 37.0}
    assert [each.with_shared(37.0) for each in rows] == [147.0, 147.0, 147.0, 110.0, 110.0, 110.0]


def decided() -> list[Row]:
    """Two cases: Copy is enough in the first and loses ten points in the second; ours sees that."""
    return [
        row("Copy", 0, score=0.9, seconds=10.0),
        row("ours", 0, score=0.9, seconds=10.0),
        row("scratch", 0, score=0.88, seconds=300.0),
        row("Copy", 1, score=0.8, seconds=10.0, passed=False),
        row("ours", 1, score=0.9, seconds=140.0),
        row("scratch", 1, score=0.91, seconds=300.0),
    ]


def test_regret_is_to_the_best_way_of_each_case_and_compute_to_always_retraining() -> None:
    table = policy(decided())
    # Regrets 0 and 1 point; 150 of 600 seconds, with 10 for the old pair's answers in either case.
    ours = [*("decide: ours", "2", "0.5 ± 6.4", "+0.0 ± 0.0"), "170", "0.27", "0.27", "2/2"]
    assert cells(table, "decide: ours") == ours
    assert cells(table, "always retrain")[2:] == ["1.0 ± 12.7", "+0.5 ± 19.1", "620", "1.00", "1.00", "2/2"]
    assert cells(table, "always copy")[2:] == ["5.5 ± 69.9", "+5.0 ± 63.5", "40", "0.06", "0.06", "1/2"]


def test_compute_has_what_belongs_to_a_pair_once_or_alone_in_every_case() -> None:
    """100 s of yardstick: ours 170 + 100 or 170 + 200 of 620."""
    made = {"yardstick": 100.0, "old answers": 10.0}
    found = cells(policy([replace(each, shared=made) for each in decided()]), "decide: ours")
    assert found[4:7] == ["270", f"{270 / 620:.2f}", f"{370 / 620:.2f}"]


def test_a_case_that_one_way_has_not_gone_through_is_not_averaged() -> None:
    """Else a way would look cheap for having been spared the dear cases."""
    rows = decided()[:-1]
    assert {r.case for r in complete(rows)} == {rows[0].case}
    assert cells(policy(rows), "always retrain")[1] == "1"


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_the_parts_of_a_study_share_its_cases(parts: int) -> None:
    whole = list(Plan(["mild", "harder"], ["intents"], [200, 1000], 3, ["ours"]).cases())
    shares = [
        list(Plan(["mild", "harder"], ["intents"], [200, 1000], 3, ["ours"], part, parts).cases())
        for part in range(1, parts + 1)
    ]
    assert sorted(case for share in shares for case in share) == sorted(whole)
    assert len(whole) == 12
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_rows_survive_the_disk_and_those_of_an_earlier_study_are_read(tmp_path: Path) -> None:
    rows = [row("Copy"), row("ours", seconds=20.5, curve=[[1.5, 0.8]])]
    for each in rows:
        write_row(tmp_path / "study" / "harder-intents-200-0" / f"{each.way}.json", each)
    (tmp_path / "study" / ".store" / "harder").mkdir(parents=True)
    (tmp_path / "study" / ".store" / "pair.json").write_text("no row")
    earlier = tmp_path / "study" / "harder-intents-200-0" / "scratch.json"
    write_row(earlier, row("scratch", begin=None, end=None))
    text = earlier.read_text().replace(', "begin": null, "end": null', "")
    earlier.write_text(text)
    assert "begin" not in text
    assert sorted(r.way for r in read_rows([tmp_path / "study"])) == ["Copy", "ours", "scratch"]


def test_the_page_has_every_table() -> None:
    text = tables(decided())
    assert [line for line in text.splitlines() if line.startswith("### ")] == [
        "### What each way comes to",
        "### CPU seconds to the gate's decision",
        "### Accuracy over CPU seconds",
        "### Deciding case by case beside always doing one thing",
        "### Passed, and worse than allowed on examples that the gate had not looked at",
        "### What it was to reach",
    ]


def test_curves_are_means_over_seeds_with_their_interval() -> None:
    """At 10 s one seed offers 50 %, the other 70 %: 60 ± 12.706 · 14.142 / √2."""
    rows = [row("ours", 0, seconds=20.0), row("ours", 1, seconds=20.0, curve=[(5.0, 0.7)])]
    means, widths = over_time(rows, [10.0, 20.0])
    assert means == pytest.approx([60.0, 90.0])
    assert widths == pytest.approx([12.7062 * 10.0, 0.0], rel=1e-4)


def _drawn(path: Path) -> Sequence[ElementTree.Element]:
    return list(ElementTree.fromstring(path.read_text()).iter())


def test_plots_load_nothing(tmp_path: Path) -> None:
    plot_study(decided(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scores.svg", "seconds.svg", "time.svg"]
    for path in tmp_path.iterdir():
        links = [value for e in _drawn(path) for name, value in e.attrib.items() if name.endswith("href")]
        assert all(link.startswith("#") for link in links)
        assert not [e for e in _drawn(path) if e.tag.rpartition("}")[2] in ("script", "image")]
