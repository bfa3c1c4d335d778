"""Nothing lost: checkpoints, what they refuse, and runs that go on from them."""

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import _run
from rcig_eqx import (
    PoolSchedule,
    Recipe,
    convnet_for,
    coreset_optimizer,
    growing_average,
    init,
    load_state,
    platt_loss,
    real_coreset,
    save_state,
)
from rcig_eqx.data import DataError, Dataset, ImageFolder, load, standardize
from rcig_eqx.methods import frepo, rcig, rcig_paper, staged
from rcig_eqx.run._checkpoint import CheckpointFolder, arrays_of
from rcig_eqx.run._resume import check_same_run
from rcig_eqx.solvers import Adam

STEPS = 6
# Strategies that are the same objects in every run, so that one compiled step serves them all.
SAME: dict[str, Any] = {
    "images_per_class": 1,
    "model": convnet_for((14, 14, 1), 3, width=4, depth=1),
    "method": staged(frepo(), rcig(), 3),
    "optimizer": coreset_optimizer(),
    "pool": PoolSchedule(size=3, max_steps=4, max_visit=2),
    "average": growing_average(),
    "batch_size": 12,
    "progress": False,
    "checkpoint_every": 0.0,
}


@pytest.fixture(scope="module")
def train():
    whole = load("fashion_mnist_small", "train")
    chosen = np.concatenate([np.flatnonzero(whole.labels == c)[:20] for c in range(3)])
    return Dataset(whole.images[chosen, ::2, ::2], whole.labels[chosen], whole.class_names[:3])


def distill(train, *, key: int = 0, steps: int = STEPS, **changed: Any) -> Any:
    return _run.distill(train, key=jr.key(key), steps=steps, **(SAME | changed))


@pytest.fixture(scope="module")
def whole(train):
    """The run that nothing interrupts."""
    return distill(train)


def until(step):
    """A callback that ends a run after so many steps."""
    return lambda progress: progress.step == step


def same_run(a, b) -> bool:
    """Whether two results are the same bytes, the clock's apart."""
    for name in ("coreset", "last", "baseline"):
        pairs = zip(
            jax.tree.leaves(getattr(a, name)), jax.tree.leaves(getattr(b, name)), strict=True
        )
        if any(np.asarray(x).tobytes() != np.asarray(y).tobytes() for x, y in pairs):
            return False
    names = a.history.keys() - {"seconds"}
    return a.recipe == b.recipe and all(
        a.history[n].tobytes() == b.history[n].tobytes() for n in names
    )


@pytest.mark.parametrize("at", [1, 3, 5])
def test_interrupted_is_the_same_as_uninterrupted(at, train, whole, tmp_path):
    """Before, at and after the change of method."""
    part = distill(train, checkpoint_dir=tmp_path, callbacks=[until(at)])
    assert part.interrupted
    assert part.recipe["steps_done"] == at
    assert same_run(distill(train, checkpoint_dir=tmp_path, resume=True), whole)


def test_checkpoints_change_nothing_and_the_newest_are_kept(train, whole, tmp_path):
    assert same_run(distill(train, checkpoint_dir=tmp_path, keep_checkpoints=2), whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"step-{n:08d}.safetensors" for n in (STEPS - 1, STEPS)
    ]


def test_a_run_that_is_done_is_returned_and_can_be_made_longer(train, whole, tmp_path):
    distill(train, checkpoint_dir=tmp_path)
    steps = []
    count: Any = {"callbacks": [lambda progress: steps.append(progress.step)]}
    again = distill(train, checkpoint_dir=tmp_path, resume=True, **count)
    assert same_run(again, whole)
    assert steps == []
    longer = distill(train, checkpoint_dir=tmp_path, resume=True, steps=STEPS + 2, **count)
    assert steps == [STEPS + 1, STEPS + 2]
    assert same_run(longer, distill(train, steps=STEPS + 2))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_with_a_checkpoint(number, train, whole, tmp_path):
    def press(progress):
        if progress.step == 2:
            os.kill(os.getpid(), number)

    part = distill(train, checkpoint_dir=tmp_path, checkpoint_every=1e9, callbacks=[press])
    assert part.recipe["steps_done"] == 2
    assert same_run(distill(train, checkpoint_dir=tmp_path, resume=True), whole)


def test_an_adapting_method_goes_on_with_its_rates(train, tmp_path):
    method = rcig_paper(inner=Adam(steps=3), solver=Adam(steps=3))
    run = distill(train, steps=3, method=method)
    distill(train, steps=3, method=method, checkpoint_dir=tmp_path, callbacks=[until(2)])
    assert same_run(
        distill(train, steps=3, method=method, checkpoint_dir=tmp_path, resume=True), run
    )


def damage(path, how):
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        middle = len(content) - 40
        flipped = bytes([content[middle] ^ 1])
        path.write_bytes(content[:middle] + flipped + content[middle + 1 :])


@pytest.mark.parametrize("how", ["truncated", "empty", "one bit"])
def test_a_damaged_checkpoint_is_named_and_passed_over(how, train, whole, tmp_path):
    distill(train, checkpoint_dir=tmp_path, callbacks=[until(4)])
    newest = tmp_path / "step-00000004.safetensors"
    damage(newest, how)
    with pytest.warns(RuntimeWarning, match=r"Passed over: .*step-00000004.*damaged"):
        assert same_run(distill(train, checkpoint_dir=tmp_path, resume=True), whole)


def test_a_damaged_checkpoint_takes_no_good_ones_place(train, tmp_path):
    distill(train, checkpoint_dir=tmp_path, callbacks=[until(5)])
    third, fourth, fifth = sorted(tmp_path.iterdir())
    damage(fourth, "truncated")
    damage(fifth, "truncated")
    again: Any = {"checkpoint_dir": tmp_path, "resume": True, "keep_checkpoints": 1}
    with pytest.warns(RuntimeWarning, match="Passed over"):
        distill(train, callbacks=[until(4)], **again)
    assert not third.exists()
    with pytest.warns(RuntimeWarning, match="Passed over"):
        assert distill(train, callbacks=[until(5)], **again).recipe["steps_done"] == 5


def test_nothing_is_started_anew_where_all_are_damaged(train, tmp_path):
    distill(train, checkpoint_dir=tmp_path, callbacks=[until(2)])
    for path in tmp_path.iterdir():
        damage(path, "truncated")
    with (
        pytest.warns(RuntimeWarning, match="Passed over"),
        pytest.raises(DataError, match="All 2 checkpoints"),
    ):
        distill(train, checkpoint_dir=tmp_path, resume=True)


def test_what_a_killed_writer_left_is_swept_up(train, tmp_path):
    part = tmp_path / ".step-00000003.safetensors.1234.part"
    part.write_bytes(b"half")
    distill(train, checkpoint_dir=tmp_path, steps=1)
    assert not part.exists()


@pytest.fixture(scope="module")
def one_step(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one_step")
    distill(train, checkpoint_dir=folder, callbacks=[until(1)])
    return folder


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"images_per_class": 2}, "images_per_class: 1 there, 2 here"),
        ({"batch_size": 13}, "batch_size: 12 there, 13 here"),
        ({"key": 1}, "key"),
        ({"method": staged(frepo(), rcig(), 2)}, r"method\.steps: 3 there, 2 here"),
        ({"optimizer": coreset_optimizer(0.01)}, r"learning_rate=0\.01, .* here"),
        ({"average": growing_average(3.0)}, r"=9\.0\)' there, .*=3\.0\)' here"),
        ({"pool": PoolSchedule(size=4, max_steps=4, max_visit=2)}, r"pool\.size: 3 there, 4"),
        ({"model": convnet_for((14, 14, 1), 3, width=5, depth=1)}, r"model\.width: 4 there, 5"),
    ],
)
def test_a_checkpoint_of_another_recipe_is_refused(changed, said, train, one_step):
    with pytest.raises(ValueError, match=f"differs from this one.*{said}"):
        distill(train, checkpoint_dir=one_step, resume=True, **changed)


def test_functions_without_a_name_differ_by_their_source(train, tmp_path):
    distill(train, checkpoint_dir=tmp_path, steps=1, average=lambda count: 1 / (count + 1.0))
    with pytest.warns(RuntimeWarning, match="a run whose average had other source code"):
        distill(
            train, checkpoint_dir=tmp_path, resume=True, average=lambda count: 1 / (count + 2.0)
        )


def test_a_checkpoint_of_another_data_set_is_refused(train, one_step):
    images = train.images.copy()
    images[-1, 0, 0, 0] ^= 1
    other = Dataset(images, train.labels, train.class_names)
    with pytest.raises(ValueError, match="training images"):
        distill(other, checkpoint_dir=one_step, resume=True)


def test_an_earlier_run_is_not_overwritten_by_accident(train, one_step):
    with pytest.raises(ValueError, match="resume=True"):
        distill(train, checkpoint_dir=one_step)


def test_a_longer_run_keeps_its_default_method(train, tmp_path):
    """The step at which it changes over, that is."""
    common: Any = {"method": None, "checkpoint_dir": tmp_path}
    distill(train, steps=4, **common)
    longer = distill(train, steps=6, resume=True, **common)
    assert longer.recipe["method"]["steps"] == 2
    assert longer.recipe["steps_done"] == 6


def test_a_failure_before_the_first_step_leaves_nothing_to_trip_over(train, tmp_path, monkeypatch):
    def no_batches(*arguments, **options):
        raise OSError("gone")
        yield

    with monkeypatch.context() as patch:
        patch.setattr("rcig_eqx._distill._batches", no_batches)
        with pytest.raises(DataError, match="step 1 could not be read: OSError: gone"):
            distill(train, checkpoint_dir=tmp_path, steps=1)
    distill(train, checkpoint_dir=tmp_path, steps=1)


def test_a_broken_terminal_does_not_cost_the_checkpoint(train, whole, tmp_path, monkeypatch):
    def broken(self, step, steps, metrics):
        if step == 3:
            raise BrokenPipeError("closed")

    with monkeypatch.context() as patch:
        patch.setattr("rcig_eqx.run._progress.ProgressBar.update", broken)
        with pytest.raises(BrokenPipeError):
            distill(train, checkpoint_dir=tmp_path, checkpoint_every=1e9)
    assert same_run(distill(train, checkpoint_dir=tmp_path, resume=True), whole)


def weighted(weights):
    """A loss that has closed over its weights."""

    def loss(predictions, targets, log_temperature):
        return platt_loss(predictions, targets * weights[None], log_temperature)

    return loss


def test_a_number_that_a_loss_has_closed_over_tells_runs_apart(train, tmp_path):
    losses = [weighted(jnp.asarray([1.0, 1.0, w])) for w in (1.0, 50.0)]
    distill(train, steps=1, method=frepo(outer_loss=losses[0]), checkpoint_dir=tmp_path)
    other = frepo(outer_loss=losses[1])
    with pytest.raises(ValueError, match="program"):
        distill(train, steps=2, method=other, checkpoint_dir=tmp_path, resume=True)


def test_a_random_key_that_a_loss_has_closed_over_is_a_number_too(train, tmp_path):
    def noisy(seed):
        noise = jr.key(seed)

        def loss(predictions, targets, log_temperature):
            weights = jr.uniform(noise, targets.shape[1:])
            return platt_loss(predictions, targets * weights[None], log_temperature)

        return frepo(outer_loss=loss)

    distill(train, steps=1, method=noisy(0), checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match="program"):
        distill(train, steps=2, method=noisy(1), checkpoint_dir=tmp_path, resume=True)


def test_numbers_that_numpy_does_not_know_are_kept(train, tmp_path):
    adam = optax.adam(0.01, mu_dtype=jnp.bfloat16)
    whole = distill(train, steps=4, optimizer=adam)
    common: Any = {"steps": 4, "optimizer": adam, "checkpoint_dir": tmp_path}
    distill(train, callbacks=[until(2)], **common)
    assert same_run(distill(train, resume=True, **common), whole)


def test_a_shorter_run_than_is_there_is_refused(train, tmp_path):
    distill(train, checkpoint_dir=tmp_path, steps=3)
    with pytest.raises(ValueError, match="has 3 steps already"):
        distill(train, checkpoint_dir=tmp_path, steps=2, resume=True)


def test_other_versions_are_said(train, whole, tmp_path, monkeypatch):
    distill(train, checkpoint_dir=tmp_path, callbacks=[until(2)])
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0")
    with pytest.warns(RuntimeWarning, match="other versions.*jax: "):
        distill(train, checkpoint_dir=tmp_path, resume=True)


def test_another_number_of_devices_is_said(tmp_path):
    card = {"versions": {}, "settings": {}, "devices": 4}
    with pytest.warns(RuntimeWarning, match="a run on 4 devices and goes on with 1"):
        check_same_run(card, card | {"devices": 1}, CheckpointFolder(tmp_path))


def test_a_folder_that_cannot_be_written_is_said_before_any_work(train, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="choose another checkpoint_dir"):
        distill(train, checkpoint_dir=tmp_path / "file" / "folder")


def test_a_folder_in_use_is_refused_and_free_at_the_end_of_any_run(train, tmp_path):
    folder, seen = tmp_path / "new" / "run", []

    def another(progress):
        with pytest.raises(BlockingIOError, match=f"in use by process {os.getpid()} on ."):
            distill(train, checkpoint_dir=folder, resume=True)
        seen.extend(part.exists() for part in parts)
        raise RuntimeError("mine")

    parts = [folder / f".step-0000000{i}.safetensors.{'ab' * 16}.part" for i in (1, 2)]
    with pytest.raises(RuntimeError, match="mine"):
        distill(train, checkpoint_dir=folder, callbacks=[lambda _: parts[0].touch(), another])
    assert seen == [True, False]
    assert distill(train, checkpoint_dir=folder, resume=True).recipe["steps_done"] == STEPS
    assert not list(folder.glob(".*"))  # the lock, and what a killed writer left


def test_too_little_room_is_said_before_any_work(train, tmp_path, monkeypatch):
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    with pytest.raises(OSError, match="free some space"):
        distill(train, checkpoint_dir=tmp_path)


def test_a_disk_that_fills_up_stops_nothing(train, whole, tmp_path, monkeypatch):
    """The checkpoint before stays, the run goes on and says so, and so does a later attempt."""
    from rcig_eqx import _files

    distill(train, checkpoint_dir=tmp_path, callbacks=[until(2)])
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(_files.os, "fsync", full)
        with pytest.warns(RuntimeWarning, match=r"No checkpoint.*No space"):
            run = distill(train, checkpoint_dir=tmp_path, resume=True)
    assert same_run(run, whole)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert same_run(distill(train, checkpoint_dir=tmp_path, resume=True), whole)


def test_a_failing_callback_leaves_a_checkpoint(train, whole, tmp_path):
    def fail(progress):
        if progress.step == 3:
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine") as caught:
        distill(train, checkpoint_dir=tmp_path, checkpoint_every=1e9, callbacks=[fail])
    assert "resume=True" in caught.value.__notes__[-1]
    assert same_run(distill(train, checkpoint_dir=tmp_path, resume=True), whole)


# One state, without the loop.


@pytest.fixture(scope="module")
def state(train):
    pre = standardize(train.images)
    recipe = Recipe(rcig(), SAME["model"], coreset_optimizer(), SAME["pool"], growing_average())
    return init(real_coreset(train, 1, pre, key=jr.key(0)), recipe, key=jr.key(1))


def test_a_state_is_read_as_it_was_written(state, tmp_path):
    save_state(tmp_path / "state", state, card={"mine": [1, "two"]})
    like = init(state.psi, state.recipe, key=jr.key(7))
    restored = load_state(tmp_path / "state", like)
    a, b = arrays_of(state), arrays_of(restored)
    assert a.keys() == b.keys()
    assert all(a[n].tobytes() == b[n].tobytes() and a[n].dtype == b[n].dtype for n in a)
    assert restored.key.dtype == state.key.dtype


def test_a_state_of_another_shape_is_refused(state, tmp_path):
    save_state(tmp_path / "state", state)
    recipe = state.recipe
    wider = Recipe(
        recipe.method,
        convnet_for((14, 14, 1), 3, width=6, depth=1),
        recipe.optimizer,
        recipe.schedule,
        recipe.average,
    )
    with pytest.raises(ValueError, match=r"kernel is float32 .* another network"):
        load_state(tmp_path / "state", init(state.psi, wider, key=jr.key(1)))


def test_old_keys_are_kept_too(state, tmp_path):
    old = init(state.psi, state.recipe, key=jax.random.PRNGKey(3))
    save_state(tmp_path / "state", old)
    restored = load_state(tmp_path / "state", old)
    np.testing.assert_array_equal(np.asarray(restored.key), np.asarray(old.key))
    assert restored.step.dtype == jnp.int32


# Sets on disk, and processes.


@pytest.fixture
def pictures(train, tmp_path):
    """The training images as files."""
    Image = pytest.importorskip("PIL.Image")
    for i, (image, label) in enumerate(zip(train.images, train.labels, strict=True)):
        folder = tmp_path / "pictures" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[:, :, 0]).save(folder / f"{i:02}.png")
    return ImageFolder(tmp_path / "pictures")


def test_data_files_that_vanish_leave_a_checkpoint(pictures, tmp_path):
    whole = distill(pictures, steps=12)

    def remove(progress):
        if progress.step == 3:
            for file in pictures.files:
                file.rename(file.with_suffix(".gone"))

    folder = tmp_path / "checkpoints"
    changed: Any = {"checkpoint_dir": folder, "checkpoint_every": 1e9}
    with pytest.raises(DataError, match=r"png cannot be read.*No such") as caught:
        distill(pictures, steps=12, callbacks=[remove], **changed)
    assert "resume=True" in caught.value.__notes__[-1]
    for file in pictures.files:
        file.with_suffix(".gone").rename(file)
    assert same_run(distill(pictures, steps=12, resume=True, **changed), whole)


def test_workers_change_nothing_and_a_dead_one_is_said(pictures, tmp_path):
    whole = distill(pictures, steps=12)

    def kill(progress):
        if progress.step == 3:
            for process in multiprocessing.active_children():
                assert process.pid
                os.kill(process.pid, signal.SIGKILL)

    changed: Any = {"checkpoint_dir": tmp_path / "checkpoints", "steps": 12}
    with pytest.raises(DataError, match=r"could not be read: .*terminated unexpectedly"):
        distill(pictures, workers=2, callbacks=[kill], **changed)
    assert same_run(distill(pictures, workers=1, resume=True, **changed), whole)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 20])
def test_killed_at_random_moments_ends_in_the_same_bytes(kills):
    script = Path(__file__).parent.parent / "benchmarks" / "kills.py"
    options = ["--kills", str(kills), "--steps", str(40 * kills), "--width", "4"]
    done = subprocess.run(
        [sys.executable, str(script), *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"survived {kills} of {kills} kills" in done.stdout
    assert "the same bytes: True" in done.stdout


def test_a_run_begun_in_a_terminal_goes_on_outside_one(train, whole, tmp_path, monkeypatch):
    """JAX colours the text of a program where it thinks that somebody looks."""
    with monkeypatch.context() as patch:
        patch.setattr("jax._src.pretty_printer._can_use_color", lambda: True)
        patch.setattr("jax._src.pretty_printer.CAN_USE_COLOR", True, raising=False)
        distill(train, checkpoint_dir=tmp_path, callbacks=[until(2)])
    assert same_run(distill(train, checkpoint_dir=tmp_path, resume=True), whole)


def test_resume_without_a_folder_is_refused(train):
    with pytest.raises(ValueError, match="folder"):
        distill(train, resume=True)
