"""Runs that end by time, and what is said of the time that a run takes."""

import dataclasses
import io
import re
from typing import Any

import jax.random as jr
import numpy as np
import pytest
from rich.console import Console

from rcig_eqx import TimeLimit, convnet_for, distill, methods
from rcig_eqx.run import _pace
from rcig_eqx.run._memory import MemoryEstimate
from rcig_eqx.run._pace import Pace
from rcig_eqx.run._progress import OPEN, Progress, ProgressBar


def settings(images: int = 8) -> tuple[Any, dict[str, Any]]:
    labels = np.arange(images) % 2
    pixels = np.random.default_rng(0).integers(0, 256, (images, 8, 8, 1)).astype(np.uint8)
    model = convnet_for((8, 8, 1), 2, width=2, depth=1)
    return (pixels, labels), {"images_per_class": 1, "key": jr.key(0), "model": model}


def test_the_limit_ends_a_run_of_any_number_of_steps():
    train, asked = settings()
    limit = TimeLimit(minutes=1e-9)
    result = distill(train, steps=OPEN, callbacks=[limit], progress=False, **asked)
    assert limit.reached
    assert result.recipe["steps_done"] == 1
    assert result.recipe["method"]["steps"] == 1000  # of the head alone


def test_a_run_that_ends_before_its_limit_has_not_reached_it(capsys):
    train, asked = settings()
    limit = TimeLimit(minutes=60)
    result = distill(train, steps=9, method=methods.frepo(), callbacks=[limit], **asked)
    assert not limit.reached
    assert result.recipe["steps_done"] == 9
    assert "The run ends after 60 min. A step takes about" in capsys.readouterr().err


def test_the_limit_is_of_all_seconds_of_a_run():
    train, asked = settings()
    limit, told, reached = TimeLimit(minutes=2), [], []

    def after(progress: Progress) -> None:
        for seconds in (119.9, 120.0):
            at = dataclasses.replace(progress, seconds=seconds, ends_at=told.append)
            reached.append(limit(at))

    distill(train, steps=1, method=methods.frepo(), callbacks=[after], progress=False, **asked)
    assert (reached, told) == ([False, True], [120.0, 120.0])


@pytest.mark.parametrize("minutes", [0, -1.0, float("nan")])
def test_minutes_are_positive(minutes):
    with pytest.raises(ValueError, match=r"minutes is .*: it must be positive"):
        TimeLimit(minutes)


def test_seconds_are_those_of_the_steps():
    """The first of some small steps takes no longer than a compilation would."""
    train, asked = settings()
    result = distill(train, steps=3, method=methods.frepo(), progress=False, **asked)
    first, *_, last = result.history["seconds"]
    assert 0 < first < last
    assert first < 1


def test_a_method_tells_when_its_steps_will_cost_otherwise():
    assert methods.rcig().turn is None
    both = methods.staged(methods.frepo(), methods.rcig(), 7)
    turn: Any = both.turn
    left, then = turn
    assert left == 7
    assert then.done == then.steps == 7
    assert then.turn is None


def test_the_time_of_both_stages_is_told_and_changes_nothing(monkeypatch, capsys):
    monkeypatch.setattr(_pace, "_LONG", 0.0)
    train, asked = settings()
    asked["method"] = methods.staged(methods.frepo(), methods.frepo(), 20)
    shown = distill(train, steps=75, **asked)
    text = capsys.readouterr().err
    said = re.search(
        r"About \d+ s for 7[01] more steps: 1[56] at \S+ s each, then 55 at \S+ s\. "
        r"A step takes about \d+ MB of memory\.\n",
        text,
    )
    assert said, text
    silent = distill(train, steps=75, progress=False, **asked)
    np.testing.assert_array_equal(shown.coreset.images, silent.coreset.images)
    assert capsys.readouterr().err == ""


def test_what_cannot_be_tried_is_left_out():
    bar = ProgressBar(console=Console(file=io.StringIO()))
    pace = Pace(bar, 1000, False, MemoryEstimate(1_200_000_000, 30_000_000, 0))
    assert pace._text(4, 500, 1.0, None) == "About 8 min for the first 500 of 1,000 steps"
    assert pace._text(4, 500, 1.0, 10.0).startswith("About 1.5 h for 996 more steps: 496 at 1 s")
    assert pace._text(4, 1000, 0.1, None) == "About 100 s for 996 more steps"
    assert pace._text(4, 1000, 0.01, None) == ""  # nothing that is short
    assert pace._memory() == ". A step takes about 1.2 GB of memory"
    bar.ends_at(90)
    assert pace._text(4, 500, 1.0, None) == "The run ends after 1.5 min"


def test_the_bar_shows_the_time_where_that_ends_the_run():
    text = io.StringIO()
    bar = ProgressBar(console=Console(file=text, width=200))
    bar.ends_at(100.0)
    bar.update(1, OPEN, {"loss": 1.0, "seconds": 40.0})
    bar.update(6, OPEN, {"loss": 1.0, "seconds": 50.0})
    bar.update(9, 10, {"loss": 1.0, "seconds": 60.0})  # whichever comes first
    lines = text.getvalue().splitlines()
    assert lines[0] == "step 1  loss 1.000  40 s, 60 s left"
    assert lines[1] == "step 6  loss 1.000  0.5 steps/s  50 s, 50 s left"
    assert lines[2].startswith("9/10")
    assert lines[2].endswith("60 s, 2 s left")


def test_the_time_left_counts_a_later_stage_at_its_own_cost():
    text = io.StringIO()
    bar = ProgressBar(console=Console(file=text, width=200))
    bar.update(1, 100, {"loss": 1.0, "seconds": 0.0})
    bar.turns(50, 3.0)
    for step, seconds in ((10, 10.0), (30, 30.0), (50, 50.0), (51, 60.0), (61, 90.0)):
        bar.update(step, 100, {"loss": 1.0, "seconds": seconds})
    left = [re.search(r"(\d+) s left", line) for line in text.getvalue().splitlines()]
    assert [found and int(found[1]) for found in left] == [None, None, 170, 150, None, 117]
