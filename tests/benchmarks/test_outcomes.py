"""The summary of a run, with numbers worked out by hand."""

from __future__ import annotations

import pytest
from outcomes import Outcome, Spread, Summary, summarize, table

LATE = Outcome(scheduled=10.0, sent=12.0, chunks=(13.0, 13.5, 14.5), ended=14.5, tokens=3, model="a")
PROMPT = Outcome(scheduled=11.0, sent=11.0, chunks=(11.5, 12.0), ended=12.25, tokens=2, model="b")
FAILED = Outcome(scheduled=12.0, sent=12.0, chunks=(12.5,), ended=20.0, tokens=0, model="b", error="answer cut off")


def test_latencies_count_from_the_scheduled_arrival_and_not_from_sending() -> None:
    assert LATE.first_token_s == 3.0
    assert LATE.end_to_end_s == 4.5
    assert summarize([LATE]).send_lag == Spread(2.0, 2.0, 2.0)


def test_a_summary_of_whole_late_and_failed_answers() -> None:
    summary = summarize([LATE, PROMPT, FAILED], slos_s=(0.5, 6.0))

    assert summary == Summary(
        requests=3,
        completed=2,
        errors={"answer cut off": 1},
        duration_s=10.0,
        requests_per_s=0.2,
        output_tokens_per_s=0.5,
        first_token=Spread(1.75, 2.75, 2.975),  # of 3.0 and 0.5, linear between
        inter_token=Spread(0.5, 0.9, 0.99),  # of 0.5, 1.0 and 0.5
        end_to_end=Spread(2.875, 4.175, 4.4675),  # of 4.5 and 1.25
        attainment={"0.5": 0.0, "6": 2 / 3},  # S-LoRA's objective is strict, and a failed request misses it
        send_lag=Spread(0.0, 1.6, 1.96),
        chunks_per_token=1.0,
    )


def test_the_table_names_what_went_wrong() -> None:
    head, rule, row = table([("ours", summarize([LATE, PROMPT, FAILED]))]).splitlines()

    assert head.count("|") == rule.count("|") == row.count("|")
    assert "| ours | 2 / 3 | 0.5 | 0.20 | 1750 / 2750 / 2975 | 500 / 900 / 990 |" in row
    assert "| 67% < 6 s | 1 × answer cut off |" in row


def test_a_run_of_failures_alone_has_no_latencies() -> None:
    summary = summarize([FAILED])

    assert (summary.completed, summary.first_token, summary.inter_token) == (0, None, None)
    assert "–" in table([("", summary)])


def test_nothing_is_no_run() -> None:
    with pytest.raises(ValueError, match="no requests"):
        summarize([])
