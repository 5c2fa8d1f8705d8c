"""The tally: what a job has done so far, whatever order the news come in."""

from __future__ import annotations

import io

from asymvae.pipeline.progress import Display, Tally


def test_a_shard_that_is_run_again_is_not_counted_twice() -> None:
    tally = Tally()
    tally.tell("a", 5, {"missing_mask": 2})
    tally.tell("b", 7, {})
    tally.tell("a", 1, {})
    assert (tally.samples, dict(tally.errors)) == (8, {})


def test_news_that_come_after_a_shards_report_do_not_undo_it() -> None:
    # They go by way of another actor, and once made "44 samples" of a run's last line 37.
    tally = Tally()
    tally.tell("a", 5, {"missing_mask": 1})
    tally.settle("a", 11, {"missing_mask": 2})
    tally.tell("a", 9, {"missing_mask": 1})
    assert (tally.samples, dict(tally.errors)) == (11, {"missing_mask": 2})


def test_elsewhere_than_on_a_terminal_the_last_line_says_what_was_done() -> None:
    out, tally = io.StringIO(), Tally()
    display = Display(4, 1, tally, out)
    tally.settle("a", 11, {"missing_mask": 2})
    display.refresh(2)
    display.close()
    (line,) = out.getvalue().splitlines()
    assert line.startswith("11 samples, ")
    assert "2 errors, 2 of 4 shards, about " in line
