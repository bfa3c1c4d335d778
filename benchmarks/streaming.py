"""A set that is streamed from records instead of held: memory, speed, and the same numbers.

    python benchmarks/streaming.py --folder /tmp/streamed

Writes synthetic images to records, streams them shuffled with each number of worker processes,
whitens batches on the device, and then does the same with the set in memory. Resident sizes are
the largest seen of this process and all that it started, pages they share counted once for each:
no less than what they take. `--seconds` is of each stream; the processes' own start is left out.
"""

import argparse
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import equinox as eqx
import jax
import numpy as np

from _common import print_header
from rcig_eqx import data

SIZE = 64


class Synthetic(data.AbstractImages):
    """Random images, each a function of its number, with something in common beside the noise."""

    name = "synthetic"
    class_names = tuple(str(i) for i in range(1000))
    image_shape = (SIZE, SIZE, 3)

    def __init__(self, count: int):
        self.labels = np.arange(count, dtype=np.int32) % len(self.class_names)

    def image(self, index: int) -> np.ndarray:
        rng = np.random.default_rng(index)
        coarse = rng.integers(0, 224, (SIZE // 8, SIZE // 8, 3), np.uint8)
        noise = rng.integers(0, 32, self.image_shape, np.uint8)
        return coarse.repeat(8, axis=0).repeat(8, axis=1) + noise


def resident() -> int:
    """Megabytes of this process and all below it."""
    parents, sizes = {}, {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        except OSError:  # it ended meanwhile
            continue
        parents[int(lines["Pid"])] = int(lines["PPid"])
        sizes[int(lines["Pid"])] = int(lines.get("VmRSS", "0 kB").split()[0])
    ours = {int(Path("/proc/self").resolve().name)}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return sum(sizes[pid] for pid in ours) // 1000


def measure(batches: Iterator, seconds: float, transform=None) -> tuple[float, int]:
    """Images a second, and the largest resident size, of a stream that has started."""
    for _ in range(20):  # processes start, programs are compiled, buffers fill
        images, _ = next(batches)
        jax.block_until_ready(transform(images) if transform else images)
    start, count, most, looked = time.perf_counter(), 0, 0, 0.0
    while (now := time.perf_counter()) - start < seconds:
        images, _ = next(batches)
        jax.block_until_ready(transform(images) if transform else images)
        count += len(images)
        if now - looked > 0.5:
            looked, most = now, max(most, resident())
    return count / (time.perf_counter() - start), most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="made, and removed at the end")
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--block", type=int, default=16)
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=20)
    args = parser.parse_args()
    print_header(f"{args.images} images of {SIZE} pixels, batches of {args.batch_size}")
    start = time.perf_counter()
    records = data.write_records(Synthetic(args.images), args.folder, progress=False)
    size = (args.folder / "images.array_record").stat().st_size
    print(f"written: {size / 1e9:.2f} GB in {time.perf_counter() - start:.0f} s")
    try:
        start = time.perf_counter()
        whitening = data.zca(records, block=args.block)
        took = time.perf_counter() - start
        print(f"ZCA in tiles of {args.block}, one pass: {took:.0f} s, {resident()} MB afterwards")
        call = eqx.filter_jit(whitening)
        print("\n| set | workers | whitened | images/s | MB, all processes |")
        print("|---|---|---|---|---|")

        def row(name, train, workers, transform) -> None:
            batches = data.stream(train, args.batch_size, seed=0, workers=workers)
            rate, most = measure(batches, args.seconds, transform)
            done = "yes" if transform else "no"
            print(f"| {name} | {workers} | {done} | {rate:,.0f} | {most:,} |", flush=True)
            del batches
            time.sleep(1)  # its processes end

        for workers in args.workers:
            row("records", records, workers, None)
        row("records", records, args.workers[-1], call)
        held = records.read()
        row("in memory", held, 0, None)
        row("in memory", held, 0, call)

        start = time.perf_counter()
        same = eqx.tree_equal(data.zca(held, block=args.block), whitening)
        print(f"\nthe same whitening, bit for bit, of the set in memory: {bool(same)}")
        streams = [data.stream(train, args.batch_size, seed=1) for train in (held, records)]
        same, furthest = True, 0.0
        for _ in range(20):
            (x, y), (x_disk, y_disk) = map(next, streams)
            same &= np.array_equal(x, x_disk) and np.array_equal(y, y_disk)
            white = data.apply_in_chunks(whitening, x)
            furthest = max(furthest, float(np.abs(white - np.asarray(call(x_disk))).max()))
        print(f"20 batches: the same bytes: {same}; whitened apart by {furthest:.1e} at most")
    finally:
        shutil.rmtree(args.folder)


if __name__ == "__main__":
    main()
