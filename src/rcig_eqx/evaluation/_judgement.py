"""What `judge` measured: as a table, as Markdown, as JSON."""

import dataclasses
import html
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from ..data._paths import user_path
from ..io._files import write_atomically
from ._across import markdown_table, text_table
from ._report import deviation, summary

_SCORES = {
    "relative_accuracy": "relative to all training data",
    "hlr": "HLR",
    "ior": "IOR",
    "lrs": "LRS",
    "ars": "ARS",
    "rr": "RR",
}
_HEAD = ("trained on", "images per class", "accuracy", "augmented")


@dataclasses.dataclass(frozen=True)
class Row:
    """Test accuracies of networks trained on one kind of set, as fractions of one.

    - `trained_on`: which set.
    - `images_per_class`: how many images per class it has; `None` for all there are.
    - `plain`, `augmented`: `[networks]`, without and with augmentation; `None` if not measured.
    - `note`: why a row has no accuracies, or that the accuracy was given.
    """

    trained_on: str
    images_per_class: int | None
    plain: Float64[np.ndarray, " networks"] | None = None
    augmented: Float64[np.ndarray, " networks"] | None = None
    note: str = ""

    def cells(self) -> list[str]:
        """The row as text."""
        each = "all" if self.images_per_class is None else f"{self.images_per_class:,}"
        each = "" if self.plain is None and not self.images_per_class else each
        plain = self.note if self.plain is None else _cell(self.plain, self.note)
        return [self.trained_on, each, plain, _cell(self.augmented)]

    def to_json(self) -> dict[str, Any]:
        """The row as plain values."""
        values = {name: getattr(self, name) for name in ("plain", "augmented")}
        return {
            "trained_on": self.trained_on,
            "images_per_class": self.images_per_class,
            "note": self.note,
            **{name: None if x is None else _numbers(x) for name, x in values.items()},
        }


@dataclasses.dataclass(frozen=True)
class Judgement:
    """A distilled set beside real images, with the scores that benchmarks compute.

    - `rows`: one per kind of set, in the order of the table.
    - `scores`: by name, those of `hlr`, `ior`, `lrs`, `ars`, `rr` and `relative_accuracy` that the
      rows give. A score of a row with networks that diverged is left out.
    - `protocol`: how all of it was measured, in plain values.
    - `notes`: what a reader must know beside it, such as networks that diverged or had not
      converged.
    """

    rows: tuple[Row, ...]
    scores: dict[str, float]
    protocol: dict[str, Any]
    notes: tuple[str, ...] = ()

    def __getitem__(self, trained_on: str) -> Row:
        """The row of this name. `KeyError` if there is none."""
        for row in self.rows:
            if row.trained_on == trained_on:
                return row
        raise KeyError(trained_on)

    def __repr__(self) -> str:
        first = self.rows[0]
        scores = "".join(f", {_SCORES[name]} {x:.3f}" for name, x in self.scores.items())
        return f"Judgement({first.trained_on} {first.cells()[2]}{scores})"

    def __str__(self) -> str:
        table = [list(_HEAD), *(row.cells() for row in self.rows)]
        scores = (f"{_SCORES[name]} {x:.3f}" for name, x in self.scores.items())
        return "\n".join([*text_table(table), "   ".join(scores), *self._said()])

    def _repr_html_(self) -> str:
        def line(cells: Any, tag: str) -> str:
            return f"<tr>{''.join(f'<{tag}>{html.escape(c)}</{tag}>' for c in cells)}</tr>"

        body = "".join(line(row.cells(), "td") for row in self.rows)
        scores = [(_SCORES[name], f"{x:.3f}") for name, x in self.scores.items()]
        below = "".join(line(score, "td") for score in scores)
        said = "".join(f"<p>{html.escape(text)}</p>" for text in self._said())
        return f"<table>{line(_HEAD, 'th')}{body}</table><table>{below}</table>{said}"

    def to_markdown(self) -> str:
        """The table, the scores and the protocol in Markdown."""
        scores = [["score", "value"]]
        scores += [[_SCORES[name], f"{x:.3f}"] for name, x in self.scores.items()]
        rows = markdown_table([_HEAD, *(row.cells() for row in self.rows)])
        return "\n\n".join([rows, markdown_table(scores), *self._said()])

    def to_json(self) -> dict[str, Any]:
        """Everything in it as plain values."""
        rows = [row.to_json() for row in self.rows]
        more = {"protocol": self.protocol, "notes": list(self.notes)}
        return {"rows": rows, "scores": self.scores} | more

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write `to_json()` to a file, whole or not at all, and return its path."""
        path = user_path(path)
        write_atomically(path, json.dumps(self.to_json(), indent=2, allow_nan=False).encode())
        return path

    def _said(self) -> list[str]:
        """The protocol in words, and the notes."""
        p, training = self.protocol, self.protocol["training"]
        network, augmentation = training["network"], p["augmentation"]
        width = f" of width {network['width']}" if "width" in network else ""
        said = [
            f"Networks: {p['networks']} of {network['name']}{width}, {training['steps']:,} steps "
            f"of Adam, batches of {training['batch_size']:,}, learning rate "
            f"{training['learning_rate']['peak']:g}."
            + " Mirror images are trained on too, but not of all training data."
            * bool(training.get("mirrored")),
            f"Loss: {training['loss']}. Hard labels and all training data: the cross-entropy.",
            f"Labels of the set: {p['labels']['distilled']}; of random images and "
            f"centroids: {p['labels']['real']}.",
        ]
        if more := p["as_many_bits"]:
            said.append(
                f"Random images of as many bits: {more['steps']:,} steps, batches of "
                f"{more['batch_size']:,}, learning rate {more['learning_rate']:g}."
            )
        if augmentation:
            said.append(f"Augmented by {augmentation.get('strategy', augmentation['name'])}.")
        if full := p["full"]:
            said.append(
                f"All training data: {full['epochs']} epoch{'s' * (full['epochs'] > 1)}, batches "
                f"of {full['batch_size']:,}, learning rate {full['learning_rate']:g}."
            )
        if attack := p["attacks"]:
            said.append(
                f"Attacks: FGSM and PGD of {attack['steps']} steps, within 8/255 of each pixel, on "
                f"{attack['images']:,} random test images, of the networks of the first row "
                "without augmentation."
            )
        tested = p["tested_on"]
        said.append(
            f"Test set: {tested['images']:,} images of {tested['dataset']}. Cells: mean ± standard "
            "deviation (networks)."
        )
        return [*said, *self.notes]


def _numbers(accuracies: Float64[np.ndarray, " networks"]) -> dict[str, Any]:
    mean, std = float(accuracies.mean()), deviation(accuracies)
    return {"mean": mean, "std": std, "accuracies": accuracies.tolist()}


def _cell(accuracies: Float64[np.ndarray, " networks"] | None, note: str = "") -> str:
    return "" if accuracies is None else f"{summary(accuracies)} ({note or len(accuracies)})"
