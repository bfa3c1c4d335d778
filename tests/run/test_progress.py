import io

import pytest
from rich.console import Console

from rcig_eqx.run._progress import ProgressBar


def metrics(seconds: float) -> dict[str, float]:
    return {
        "loss": 1.25,
        "accuracy": 0.5,
        "residual": 3e-4,
        "iterations": 7.0,
        "rejected": 0.0,
        "seconds": seconds,
    }


def run(*, terminal: bool, enabled: bool = True, seconds: float = 4.0, width: int = 120) -> str:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=width, quiet=not enabled)
    with ProgressBar(enabled=enabled, console=console) as bar:
        for step in range(1, 11):
            bar.update(step, 10, metrics(30 + seconds * (step - 1)))
    return text.getvalue()


def test_plain_lines_where_there_is_no_terminal():
    lines = run(terminal=False).splitlines()
    start, first, *_, last = lines
    assert start == "compiling the first step (Ctrl-C waits for it)"
    assert first == "1/10  loss 1.250  accuracy 50.0%  residual 3e-04  iterations 7  30 s"
    assert last.startswith("10/10  loss 1.250")
    assert "0.25 steps/s" in last  # the first step, which compiles, is not counted
    assert last.endswith("66 s, 0 s left")
    assert [line.split("/")[0] for line in lines[1:]] == ["1", "4", "7", "10"]  # every ten seconds


def test_a_narrow_terminal_has_room_for_the_count_and_the_rate():
    text = run(terminal=True, width=80)
    assert "10/10" in text
    assert "loss 1.250  accuracy 50.0%  0.25 steps/s" in text
    assert "residual" not in text
    assert "residual" in run(terminal=False, width=80)


def test_a_step_without_a_solve_shows_none():
    text = io.StringIO()
    with ProgressBar(console=Console(file=text, width=120)) as bar:
        bar.update(1, 1, {**metrics(3.0), "accuracy": 0.0, "residual": 0.0, "iterations": 0.0})
    assert "1/1  loss 1.250  accuracy 0.0%  3 s" in text.getvalue()


def test_a_bar_in_a_terminal():
    text = run(terminal=True)
    assert "distilling" in text
    assert "10/10" in text
    assert "accuracy 50.0%" in text


@pytest.mark.parametrize("terminal", [True, False])
def test_silence(terminal):
    assert run(terminal=terminal, enabled=False) == ""


def test_a_clock_that_stands_still():
    assert "10/10" in run(terminal=False, seconds=0.0)
