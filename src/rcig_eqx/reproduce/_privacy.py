"""Membership inference on distilled sets: Tables 5 and 6, Figures 3, 6 and 7."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.random as jr

from ..data import Dataset
from ..io._plot import drawing
from ..io._result import DistillResult
from ..privacy import PrivacyReport, chunks, join, membership_inference, save_curves
from ._plan import Scale
from ._report import Report, counted
from ._rows import PRIVACY_COLUMNS, TABLE_5, TABLE_6, Row
from ._tables import Ways, networks_of, run_notes, title_of
from ._workshop import Workshop, filed

MEMBERS_PER_IMAGE = 20
_PAPER = {"mnist": TABLE_5, "fashion_mnist": TABLE_6}


def attacked(workshop: Workshop, row: Row) -> PrivacyReport:
    """The five attacks on networks of each chunk's real images, random subset and distilled set.

    A chunk is what a set is distilled from, and its images are the members (appendix B): twenty
    for every distilled one, as the paper's 10,000 for 500. Each chunk's report is filed as soon as
    it is there.
    """
    scale = workshop.scale
    whole = workshop.data(row, "train")
    if not isinstance(whole, Dataset):
        raise ValueError(
            f"Membership is inferred from sets in memory, which {row.facts.title} is not: choose "
            "other --rows."
        )
    size = _members(row, scale, len(whole))
    networks = scale.networks_of(row, attacked=True)
    reports = []
    for seed, chunk in enumerate(chunks(whole, size, scale.chunks, key=jr.key(0))):
        how: dict[str, Any] = _of_chunk(size)
        result = workshop.distilled(row, seed, train=chunk, **how)

        def attack(seed: int = seed, chunk: Dataset = chunk, result: DistillResult = result):
            each = f"{counted(networks, 'network')} a set"
            workshop.say(f"Attacking {row.name}, chunk {seed}: {each}")
            return membership_inference(
                result,
                chunk,
                workshop.data(row, "test"),
                key=jr.fold_in(jr.key(seed), 2**31),
                at=scale.snapshots(),
                num_networks=networks,
                progress=workshop.progress,
            ).to_json()

        name = f"attacks-{networks}x{'-'.join(map(str, scale.snapshots()))}.json"
        file = workshop.place(row, seed, **how) / name
        reports.append(PrivacyReport.from_json(filed(file, (result.coreset,), attack)))
    return join(reports)


def _members(row: Row, scale: Scale, images: int) -> int:
    return min(MEMBERS_PER_IMAGE * row.images, images // scale.chunks)


def _of_chunk(size: int) -> dict[str, str]:
    return {"variant": f"-chunk{size}"}


def chunk_ways(row: Row, scale: Scale) -> Ways:
    """What the sets under attack are filed under, where no training image is missing."""
    return [_of_chunk(_members(row, scale, row.facts.images))]


def membership(name: str, workshop: Workshop, rows: Sequence[Row], folder: Path) -> Report:
    """The table of the last snapshot, and the figure along training."""
    lines, values, names = [], {}, []
    for row in rows:
        found = attacked(workshop, row)
        values[row.name] = found.to_json()
        stem = f"{name}-{row.name.replace('/', '-')}"
        names.append(f"{stem}.png")
        for suffix in (".png", ".pdf"):
            with drawing():
                save_curves(found, folder / f"{stem}{suffix}", attack="MLP", title=title_of(row))
        for which, curve in found.curves.items():
            last = 100 * curve.accuracy[:, -1]
            spread = f" ± {last.std(ddof=1):.1f}" if len(last) > 1 else ""
            areas = [str(curve.mean_auc(attack)[-1]) for attack in found.attacks]
            where = [row.facts.title, str(row.images_per_class), which]
            lines.append([*where, f"{last.mean():.1f}{spread}", *areas])
        paper = _PAPER.get(row.dataset, {}) if row.images == 500 else {}
        for which, ((mean, std), *stated) in paper.items():
            numbers = [f"{mean:.2f} ± {std:.2f}" for mean, std in stated]
            lines.append(["", "", f"paper: {which}", f"{mean} ± {std}", *numbers])
    head = ["Data set", "Img/cls", "Trained on", *PRIVACY_COLUMNS]
    number = name.replace("table", "Table ").replace("figure", "Figure ")
    title = f"{number}: test accuracy in %, and AUC of membership inference"
    scale = workshop.scale
    more = [
        f"{counted(scale.chunks, 'chunk')} of {MEMBERS_PER_IMAGE} real images for every distilled "
        f"one, or as many as there are, {networks_of(scale, rows, attacked=True)} a set, "
        f"trained for {scale.snapshots()[-1]:,} steps; area under the ROC curve (0.5 is guessing) "
        "± half its 95% interval. Bands in pictures are that interval and, of accuracy, a standard "
        "deviation. Attacks: a threshold on the loss, LR logistic regression, MLP a small network, "
        "RF a random forest, KNN the nearest neighbors.",
        run_notes(workshop, rows),
    ]
    return Report(name, title, head, lines, values, more, names)
