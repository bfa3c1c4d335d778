"""What is written down of a run while it goes on."""

import csv
import dataclasses
import json
import sys
from pathlib import Path

import jax
import jax.random as jr
import numpy as np
import pytest

from rcig_eqx import Checkpoints, convnet_for, distill
from rcig_eqx.methods import frepo
from rcig_eqx.run import loggers
from rcig_eqx.run.loggers import AbstractLogger

RNG = np.random.default_rng(0)
DATA = RNG.integers(0, 256, (20, 8, 8, 1), np.uint8), np.arange(20) % 2
MODEL = convnet_for((8, 8, 1), 2, width=2, depth=1)


def run(callbacks=(), *, steps=6, **given):
    return distill(
        DATA, images_per_class=1, key=jr.key(0), method=frepo(), model=MODEL, steps=steps,
        batch_size=4, callbacks=callbacks, progress=False, **given,
    )  # fmt: skip


def stop_at(step):
    return lambda progress: progress.step == step


def lines(path: Path) -> list[dict[str, float]]:
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            head, *rows = csv.reader(file)
        return [dict(zip(head, map(float, row), strict=True)) for row in rows]
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]


def same(rows, result) -> bool:
    numbers = {name: np.array([row[name] for row in rows], np.float32) for name in rows[0]}
    steps = numbers.pop("step").tolist() == list(range(1, len(result.history["loss"]) + 1))
    return steps and all(np.array_equal(numbers[name], x) for name, x in result.history.items())


@pytest.mark.parametrize("name", ["metrics.csv", "metrics.jsonl"])
@pytest.mark.parametrize("in_folder", [False, True])
def test_every_step_is_a_line(name, in_folder, tmp_path):
    make = getattr(loggers, name.partition(".")[2])
    place = tmp_path / "new" / "run.1" if in_folder else tmp_path / "new" / f"own.{name[8:]}"
    result = run([make(place)])
    assert same(lines(place / name if in_folder else place), result)


@pytest.mark.parametrize("name", ["csv", "jsonl"])
def test_a_killed_run_that_is_resumed_repeats_no_step(name, tmp_path):
    kept = Checkpoints(tmp_path / "run")
    log, path = getattr(loggers, name), tmp_path / f"metrics.{name}"
    run([log(tmp_path), stop_at(4)], checkpoint_dir=kept)
    ended = path.read_text()
    assert len(lines(path)) == 4
    path.write_text(ended + ended.splitlines()[-1] + "\nhalf a l")  # as a killed run leaves it
    result = run([log(tmp_path)], checkpoint_dir=kept, resume=True)
    assert path.read_text().startswith(ended)
    assert same(lines(path), result)


def test_a_logger_that_joins_a_resumed_run_has_all_steps(tmp_path):
    kept = Checkpoints(tmp_path / "run")
    run([stop_at(3)], checkpoint_dir=kept)
    result = run([loggers.jsonl(tmp_path)], checkpoint_dir=kept, resume=True)
    assert same(lines(tmp_path / "metrics.jsonl"), result)


def test_a_new_run_begins_anew(tmp_path):
    log = loggers.csv(tmp_path)
    run([log])
    result = run([log], steps=3)
    assert same(lines(tmp_path / "metrics.csv"), result)


def test_lines_are_there_while_the_run_goes_on(tmp_path):
    """All but those of the step that is computed and, metrics being read late, the one before."""
    path, there = tmp_path / "metrics.jsonl", []
    run([loggers.jsonl(path), lambda progress: there.append(len(lines(path)))])
    assert there == [0, 1, 2, 3, 4, 5]


def test_no_logger_reads_from_the_device(tmp_path, monkeypatch):
    """The run reads a step's numbers once, as it does without loggers."""
    reads = []
    real = jax.device_get
    monkeypatch.setattr("jax.device_get", lambda x: reads.append(1) or real(x))
    run()
    alone = len(reads)
    reads.clear()

    logs = [loggers.jsonl(tmp_path), loggers.csv(tmp_path)]
    hidden = [
        lambda progress, log=log: log(dataclasses.replace(progress, metrics={})) for log in logs
    ]
    result = run(hidden)
    assert len(reads) == alone
    assert same(lines(tmp_path / "metrics.jsonl"), result)


def test_the_last_step_is_written_whatever_ends_the_run(tmp_path):
    def fail(progress):
        if progress.step == 3:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        run([loggers.jsonl(tmp_path), fail])
    steps = [row["step"] for row in lines(tmp_path / "metrics.jsonl")]
    assert steps == [1, 2, 3]


def test_a_logger_that_fails_ends_no_run(tmp_path):
    class Full(AbstractLogger):
        ended = 0

        def start(self, earlier):
            assert list(earlier) == []

        def write(self, row):
            raise OSError(28, "No space left on device")

        def stop(self):
            self.ended += 1
            raise OSError(28, "No space left on device")

        def __repr__(self):
            return "Full()"

    log = Full()
    with pytest.warns(RuntimeWarning, match=r"Full\(\) has stopped: .*No space left") as told:
        result = run([log])
    assert len(told) == 1
    assert log.ended == 1
    np.testing.assert_array_equal(result.history["loss"], run().history["loss"])


def test_numbers_that_are_not_finite_are_null(tmp_path):
    log = loggers.jsonl(tmp_path)
    log.start([{"step": 1, "loss": float("nan"), "condition": float("inf")}])
    log.stop()
    assert lines(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": None, "condition": None}]


def test_tensorboard_has_every_curve(tmp_path):
    pytest.importorskip("tensorboardX", reason="the extra tensorboard is not installed")
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore

    kept = Checkpoints(tmp_path / "run")
    for stop in (4, 6):
        log = loggers.tensorboard(tmp_path / "logs", every=0)
        result = run([log, stop_at(stop)], checkpoint_dir=kept, resume=stop == 6)
    points, purged = {}, []
    for file in sorted((tmp_path / "logs").iterdir(), key=lambda path: path.stat().st_mtime_ns):
        content = file.read_bytes()
        while content:  # a length, its checksum, an event, its checksum
            size = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + size])
            content = content[16 + size :]
            if event.HasField("session_log"):
                purged.append(event.step)
            for value in event.summary.value:
                points.setdefault(value.tag, []).append((event.step, value.simple_value))
    assert points.keys() == result.history.keys()
    for name, curve in points.items():
        assert [step for step, _ in curve] == [1, 2, 3, 4, 5, 6]
        values = np.asarray([y for _, y in curve], np.float32)
        np.testing.assert_array_equal(values, result.history[name])
    assert purged == [5]


def test_weights_and_biases_has_a_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run([loggers.wandb("digits", mode="offline", dir=tmp_path, every=0)], steps=3)
    (file,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    content = file.read_bytes()
    for said in (b"digits", b"loss", b"gradient_norm"):
        assert said in content


def test_points_of_charts_are_means(monkeypatch):
    """Of the steps since the last point; the rest comes at the end."""
    from rcig_eqx.run.loggers import _Charts

    class Points(_Charts):
        def start(self, earlier):
            self.points = []

        def point(self, step, numbers):
            self.points.append((step, numbers))

        def close(self):
            self.points.append("closed")

    clock = iter([10.0, 10.0, 10.2, 10.4, 11.0, 11.0, 11.5, 11.5])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    log = Points(every=1.0)
    log.start([])
    for step in range(1, 6):
        log.write({"step": step, "loss": float(step)})
    log.stop()
    assert log.points == [(1, {"loss": 1.0}), (4, {"loss": 3.0}), (5, {"loss": 5.0}), "closed"]


@pytest.mark.parametrize(("name", "library"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_what_is_not_installed_is_named(name, library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"needs {library}: pip install 'rcig-eqx\[{name}\]'"):
        loggers.LOGGERS[name](Path("run"))
    with pytest.raises(ValueError, match="every"):
        getattr(loggers, name)("x", every=-1)


def test_a_place_that_cannot_be_written_to_is_said_before_the_run(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        loggers.csv(tmp_path / "file" / "run")
