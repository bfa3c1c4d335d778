"""Nothing lost: checkpoints, what they refuse, and runs that go on from them."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import _run
from rcig_eqx import (
    Checkpoints,
    PoolSchedule,
    Recipe,
    convnet_for,
    coreset_optimizer,
    growing_average,
    init,
    load_state,
    platt_loss,
    save_state,
)
from rcig_eqx.data import DataError, Dataset, ImageFolder, load, standardize
from rcig_eqx.initializers import real_coreset
from rcig_eqx.io._files import read_checked, write_checked
from rcig_eqx.methods import frepo, rcig, rcig_paper, staged
from rcig_eqx.run._checkpoint import FORMAT, CheckpointFolder, arrays_of, read_checkpoint
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


def test_other_source_is_a_warning(train, tmp_path):
    common: Any = {"checkpoint_dir": tmp_path, "steps": 1}
    distill(train, average=lambda count: 1 / (count + 1.0), **common)
    with pytest.warns(RuntimeWarning, match="average had other source code"):
        distill(train, resume=True, average=lambda count: 1 / (count + 2.0), **common)


def test_a_checkpoint_of_another_data_set_is_refused(train, one_step):
    images = train.images.copy()
    images[-1, 0, 0, 0] ^= 1
    other = Dataset(images, train.labels, train.class_names)
    with pytest.raises(ValueError, match="training images"):
        distill(other, checkpoint_dir=one_step, resume=True)


def test_an_earlier_run_is_not_overwritten_by_accident(train, one_step):
    with pytest.raises(ValueError, match="resume it"):
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


@pytest.mark.parametrize(
    ("name", "first", "then"),
    [
        ("method", *(frepo(outer_loss=weighted(jnp.asarray([1.0, w, 1.0]))) for w in (1.0, 5.0))),
        ("optimizer", *(optax.adam(optax.cosine_decay_schedule(r, 9)) for r in (0.01, 0.02))),
    ],
)
def test_a_number_that_a_function_has_closed_over_tells_runs_apart(
    name, first, then, train, tmp_path
):
    """Every kind of it is in test_identity.py."""
    distill(train, steps=1, checkpoint_dir=tmp_path, **{name: first})
    with pytest.raises(ValueError, match=rf"functions\.{name}\.values"):
        distill(train, steps=1, checkpoint_dir=tmp_path, resume=True, **{name: then})


def test_numbers_that_numpy_does_not_know_are_kept(train, tmp_path):
    adam = optax.adam(0.01, mu_dtype=jnp.bfloat16)
    whole = distill(train, steps=4, optimizer=adam)
    common: Any = {"steps": 4, "optimizer": adam, "checkpoint_dir": tmp_path}
    distill(train, callbacks=[until(2)], **common)
    assert same_run(distill(train, resume=True, **common), whole)


def test_a_shorter_run_than_is_there_is_refused(train, tmp_path):
    distill(train, checkpoint_dir=tmp_path, steps=3)
    with pytest.raises(ValueError, match="has 3 already"):
        distill(train, checkpoint_dir=tmp_path, steps=2, resume=True)


def function(values: str, code: str, *names: str) -> dict[str, Any]:
    return {"loss": {"values": values, "code": code, "names": list(names)}}


CARD: dict[str, Any] = {
    "steps": 3,
    "devices": 1,
    "settings": {"batch_size": 4, "method": {"outer_loss": "mine"}},
    "preprocess": {"kind": "identity"},
    "fitted": "a",
    "training images": "a",
    "starting state": "a",
    "sketch": {"training images": [[9.0, 9.0, 9.0]], "starting state": [[9.0, 9.0, 9.0]]},
    "functions": function("a", "a", "mine"),
    "versions": {"jax": "0.10.0"},
    "machine": {"cores": 2},
}
NEAR: dict[str, Any] = {
    "training images": "b",
    "starting state": "b",
    "sketch": {"training images": [[9.01, 9.0, 9.0]], "starting state": [[9.0, 9.0, 9.01]]},
}
FAR: dict[str, Any] = {"sketch": NEAR["sketch"] | {"starting state": [[2.0, 9.0, 9.0]]}}
JAX: dict[str, Any] = {"versions": {"jax": "0.12.0"}}
OLD: dict[str, Any] = {k: v for k, v in CARD.items() if k in ("steps", "settings", "versions")}
OLD |= {"program": "a", "training images": "a", "starting state": "a"}

CARDS: dict[str, tuple[Any, Any, str, str]] = {  # there, here, warned of, refused for
    "the same": (CARD, CARD, "", ""),
    "more steps": (CARD, CARD | {"steps": 9}, "", ""),
    "versions": (CARD, CARD | JAX, "other versions (jax: '0.10.0' there, '0.12.0' here)", ""),
    "cores": (CARD, CARD | {"machine": {"cores": 4}}, "other cores or threads (cores: 2", ""),
    "threads": (CARD, CARD | {"machine": {"cores": 2, "XLA_FLAGS": ""}}, "(XLA_FLAGS: None", ""),
    "devices": (CARD | {"devices": 4}, CARD, "on 4 devices and goes on with 1", ""),
    "last digits by other versions": (CARD, CARD | JAX | NEAR, "other versions", ""),
    "last digits": (CARD, CARD | NEAR, "", "training images"),
    "numbers by other versions": (CARD, CARD | JAX | NEAR | FAR, "", "starting state"),
    "preprocessing": (CARD, CARD | JAX | {"fitted": "b"}, "", "fitted"),
    "settings": (CARD, CARD | {"settings": {"batch_size": 5}}, "", "batch_size: 4"),
    "source": (CARD, CARD | {"functions": function("a", "b", "mine")}, "loss had other", ""),
    "values": (CARD, CARD | {"functions": function("b", "a")}, "", "functions.loss.values"),
    "values by other versions": (CARD, CARD | JAX | {"functions": function("b", "a")}, "loss", ""),
    "a function's name": (
        CARD,
        CARD
        | {
            "settings": {"batch_size": 4, "method": {"outer_loss": "other"}},
            "functions": function("a", "b", "other"),
        },
        "loss, method had other",
        "",
    ),
    "an earlier format": (OLD, CARD, "earlier version's format", ""),
    "an earlier format by other versions": (OLD, CARD | JAX | NEAR, "earlier version's format", ""),
    "another run in an earlier format": (OLD, CARD | NEAR, "", "training images"),
}


@pytest.mark.parametrize("case", CARDS)
def test_what_two_cards_say_is_a_warning_or_an_error(case, tmp_path):
    there, here, warned, refused = CARDS[case]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if refused:
            with pytest.raises(ValueError, match=re.escape(refused)):
                check_same_run(there, here, CheckpointFolder(tmp_path))
        else:
            check_same_run(there, here, CheckpointFolder(tmp_path))
    texts = [str(w.message) for w in said]
    assert any(warned in text for text in texts) if warned else not texts


def rewritten(path: Path, change: Any) -> None:
    """A checkpoint with another card and arrays, and the checksums right."""
    header, arrays = read_checked(path, FORMAT, "checkpoint")
    change(header["card"], arrays)
    write_checked(path, header, arrays)


def as_by_an_earlier_version(card: Any, arrays: Any) -> None:
    for name in ("functions", "sketch", "machine", "preprocess", "fitted"):
        del card[name]
    card["program"] = "0123456789abcdef"
    card["versions"].pop("pillow", None)
    for name in [name for name in arrays if name.startswith("preprocess.")]:
        del arrays[name]


def by_another_machine(card: Any, arrays: Any) -> None:
    """Whose whitening has other last digits, and so has all that comes of it."""
    card["machine"]["cores"] += 1
    card["versions"]["jax"] = "0.0"
    card["training images"] = card["starting state"] = "0123456789abcdef"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (as_by_an_earlier_version, "earlier version's format"),
        (by_another_machine, r"other versions \(jax|other cores or threads \(cores"),
    ],
)
def test_a_checkpoint_from_elsewhere_goes_on(change, said, train, whole, tmp_path):
    distill(train, checkpoint_dir=tmp_path, callbacks=[until(2)])
    for path in tmp_path.iterdir():
        rewritten(path, change)
    with pytest.warns(RuntimeWarning, match=said):
        assert same_run(distill(train, checkpoint_dir=tmp_path, resume=True), whole)


@pytest.mark.parametrize("given", [True, False])
def test_the_preprocessing_is_the_one_that_was_fitted_first(given, train, tmp_path, monkeypatch):
    """Fitted anew, a whitening has other last digits with other threads."""
    changed: Any = {"preprocess": standardize(train.images)} if given else {}
    whole = distill(train, **changed)
    distill(train, checkpoint_dir=tmp_path, callbacks=[until(2)], **changed)
    near = eqx.tree_at(lambda p: p.mean, standardize(train.images), replace_fn=lambda m: m + 1e-6)
    monkeypatch.setattr("rcig_eqx._plan.default_preprocess", lambda *a, **k: near)
    changed = {"preprocess": near} if given else {}
    assert same_run(distill(train, checkpoint_dir=tmp_path, resume=True, **changed), whole)
    other = eqx.tree_at(lambda p: p.mean, near, replace_fn=lambda m: m + 0.1)
    with pytest.raises(ValueError, match="fitted"):
        distill(train, checkpoint_dir=tmp_path, resume=True, preprocess=other)


def test_a_folder_that_cannot_be_written_is_said_before_any_work(train, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="choose another folder"):
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
    from rcig_eqx.io import _files

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
    assert "resume it" in caught.value.__notes__[-1]
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
        recipe.pool,
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


def test_every_damaged_byte_of_a_checkpoint_is_seen_or_harmless(state, tmp_path):
    """The smallest one: the numbers of one layer, and a card."""
    small = eqx.filter(state, lambda x: eqx.is_array(x) and x.size < 4)
    path = save_state(tmp_path / "state", small, card={"mine": [1, "two"]})
    content, (card, arrays) = path.read_bytes(), read_checkpoint(path)
    refused = 0
    for place in range(len(content)):
        flipped = bytes([content[place] ^ (1 << place % 8)])
        path.write_bytes(content[:place] + flipped + content[place + 1 :])
        try:
            again, numbers = read_checkpoint(path)
        except DataError:
            refused += 1
            continue
        assert again == card
        assert {k: (v.dtype, v.shape, v.tobytes()) for k, v in numbers.items()} == {
            k: (v.dtype, v.shape, v.tobytes()) for k, v in arrays.items()
        }
    assert refused > 0.9 * len(content)


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
    assert "resume it" in caught.value.__notes__[-1]
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
    pictures.workers = 2
    with pytest.raises(DataError, match=r"could not be read: .*terminated unexpectedly"):
        distill(pictures, callbacks=[kill], **changed)
    pictures.workers = 1
    assert same_run(distill(pictures, resume=True, **changed), whole)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 20])
def test_killed_at_random_moments_ends_in_the_same_bytes(kills):
    script = Path(__file__).parents[2] / "benchmarks" / "kills.py"
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


def test_resume_without_a_folder_is_refused():
    with pytest.raises(TypeError, match="folder"):
        Checkpoints(resume=True)  # pyright: ignore[reportCallIssue]
