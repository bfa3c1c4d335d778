"""Faults injected into runs, one at a time, and what became of each.

    python benchmarks/faults.py

Every fault is real where it can be: bytes of a file changed, a file removed, a reading process
killed, a file system too small mounted where the system allows it (root on Linux), else a write
that fails. What a run says is printed as it says it; an outcome is compared with the run that
nothing disturbed where it should be the same.
"""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import equinox as eqx
import grain
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from _common import print_header
from rcig_eqx import (
    Checkpoints,
    PoolSchedule,
    Recipe,
    convnet_for,
    coreset_optimizer,
    data,
    distill,
)
from rcig_eqx.bilevel import Hypergradient
from rcig_eqx.methods import AbstractMethod, frepo

STEPS = 30
STRATEGIES = {
    "model": convnet_for((28, 28, 1), 10, width=4),
    "method": frepo(),
    "optimizer": coreset_optimizer(),
    "pool": PoolSchedule(size=2),
}


class faulty(AbstractMethod):
    """Head-only, but for outer batches whose first image is of class 0, which break a part."""

    part: str = eqx.field(static=True)
    l2_rate: float = 5e-4

    def hypergradient(self, model, coreset, images, targets, *, key):
        bad = jnp.where(targets[0, 0] > 0, jnp.nan, 1.0)
        result = frepo(l2_rate=self.l2_rate).hypergradient(model, coreset, images, targets, key=key)
        stats = result.stats | {"residual": jnp.ones(())}
        value, gradient = result.value, result.gradient
        if self.part == "solve":
            stats["residual"], gradient = bad, jax.tree.map(lambda x: x * bad, gradient)
        if self.part == "loss":
            value = value * bad
        if self.part == "gradient":
            gradient = jax.tree.map(lambda x: x * bad, gradient)
        return Hypergradient(value, gradient, stats)


def sometimes_diverged(key):
    """A network; every third has a filter that is not a number."""
    network = STRATEGIES["model"](key)
    bad = jnp.where(jr.uniform(key) < 1 / 3, jnp.nan, 1.0)
    return eqx.tree_at(lambda n: n.blocks[0].kernel, network, replace_fn=lambda x: x * bad)


class LatePixels:
    """A source of images of which one is not a number, beyond those looked at before a run."""

    def __init__(self, train):
        self.train = train

    def __len__(self):
        return len(self.train)

    def __getitem__(self, index):
        image = self.train.images[index].astype(np.float32) / 255
        return np.full_like(image, np.nan) if index == 77 else image, self.train.labels[index]


def run(train, folder=None, **changed):
    """What a run gave, or the error that ended it, and what it warned of."""
    given = STRATEGIES | changed
    recipe = Recipe(**{name: given.pop(name) for name in ("optimizer", "pool")})
    resume = given.pop("resume", False)
    kept = Checkpoints(folder, every=0.0, resume=resume) if folder else None
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            result = distill(
                train,
                images_per_class=1,
                key=jr.key(0),
                steps=STEPS,
                recipe=recipe,
                checkpoint_dir=kept,
                progress=False,
                **given,
            )
        except Exception as error:
            notes = " ".join(getattr(error, "__notes__", []))
            return None, [f"{type(error).__name__}: {error} {notes}"]
    return result, list(dict.fromkeys(str(warning.message) for warning in said))


def same(a, b) -> bool:
    return a is not None and np.array_equal(a.coreset.images, b.coreset.images)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """The folder on a disk of half a megabyte; whether it is a real one."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode == 0:
        try:
            yield True
        finally:
            subprocess.run(["umount", str(folder)], check=True)
    else:
        with mock.patch("os.fsync", side_effect=OSError(28, "No space left on device")):
            yield False


def until(step):
    return lambda progress: progress.step == step


def pictures(train, folder: Path) -> data.ImageFolder:
    """The first images of each class as files."""
    from PIL import Image

    for c in range(10):
        (folder / str(c)).mkdir(parents=True)
        for i in np.flatnonzero(train.labels == c)[:20]:
            Image.fromarray(train.images[i, :, :, 0]).save(folder / str(c) / f"{i:05}.png")
    return data.ImageFolder(folder)


def main() -> None:
    print_header(f"Faults injected into runs of {STEPS} steps")
    train = data.load("fashion_mnist_small", "train")
    whole, _ = run(train)

    def show(fault: str, outcome: str, said: list[str]) -> None:
        print(f"\n{fault}\n    {outcome}", *(f"    “{text.strip()}”" for text in said), sep="\n")

    cases = {part: (train, {"method": faulty(part)}) for part in ("solve", "loss", "gradient")}
    pool = {"model": sometimes_diverged, "pool": PoolSchedule(size=6)}
    cases["a network's filter"] = (train, pool)
    late = grain.MapDataset.source(LatePixels(train))
    cases["a picture's pixels"] = (late, {"batch_size": 500})
    for part, (images, changed) in cases.items():
        result, said = run(images, **changed)
        if result is None:
            show(f"not a number: {part}", "refused", said)
            continue
        rejected = int(result.history["rejected"].sum())
        finite = bool(np.isfinite(result.coreset.images).all())
        done = result.recipe["steps_done"]
        show(
            f"not a number: {part}",
            f"{rejected} of {done} steps rejected, the set finite: {finite}",
            said,
        )
    result, said = run(train, optimizer=coreset_optimizer(1e38))
    show("an update that overflows", f"stopped after {result.recipe['steps_done']} steps", said)

    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)

        def interrupted(name: str) -> Path:
            run(train, root / name, callbacks=[until(10)])
            return root / name

        for name, how in (
            ("half written", lambda b: b[: len(b) // 2]),
            ("empty", lambda b: b""),
            ("one bit flipped", lambda b: b[:-99] + bytes([b[-99] ^ 1]) + b[-98:]),
        ):
            newest = max(interrupted(name).iterdir())
            newest.write_bytes(how(newest.read_bytes()))
            result, said = run(train, root / name, resume=True)
            show(f"newest checkpoint {name}", f"same bytes: {same(result, whole)}", said)

        folder = interrupted("other")
        _, said = run(train, folder, resume=True, optimizer=coreset_optimizer(0.01))
        show("resumed with another optimizer", "refused", said)
        other = data.Dataset(train.images[1:], train.labels[1:], train.class_names)
        _, said = run(other, folder, resume=True)
        show("resumed with other images", "refused", said)

        (root / "file").touch()
        _, said = run(train, root / "file" / "below")
        show("checkpoint folder that cannot be made", "before any work", said)

        with small_disk(root / "small") as real:
            kind = "a real disk of 0.5 MB" if real else "every write failing"
            _, said = run(train, root / "small")
            show(f"no room from the start, {kind}", "before any work", said[-1:])
            with mock.patch("rcig_eqx.run._checkpoint.CheckpointFolder.check_room"):
                result, said = run(train, root / "small")
            show(
                f"disk full during the run, {kind}", f"same bytes: {same(result, whole)}", said[:1]
            )

        files = pictures(train, root / "pictures")
        calm, _ = run(files, batch_size=20)

        def remove(progress):
            if progress.step == 12:
                for file in files.files[::2]:
                    file.rename(file.with_suffix(".gone"))

        folder = root / "vanished"
        _, said = run(files, folder, batch_size=20, callbacks=[remove])
        for file in files.files[::2]:
            file.with_suffix(".gone").rename(file)
        result, _ = run(files, folder, batch_size=20, resume=True)
        show("data files vanish", f"files back and resumed, same bytes: {same(result, calm)}", said)

        def kill_readers(progress):
            if progress.step == 12:
                for process in multiprocessing.active_children():
                    os.kill(process.pid, signal.SIGKILL)

        folder = root / "workers"
        files.workers = 2
        _, said = run(files, folder, batch_size=20, callbacks=[kill_readers])
        files.workers = 1
        result, _ = run(files, folder, batch_size=20, resume=True)
        show(
            "reading processes killed",
            f"resumed with another number of them, same bytes: {same(result, calm)}",
            said,
        )


if __name__ == "__main__":
    main()
