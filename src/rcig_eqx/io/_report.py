"""A page of a run for people: one file of HTML, which fetches nothing."""

import base64
import dataclasses
import datetime
import importlib.resources
import io
import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from .._describe import versions
from ..data._dataset import noun
from ..data._paths import user_path
from ..evaluation._report import Evaluation, summary
from ._figures import confusion_figure, history_figure, rows_figure
from ._files import write_atomically
from ._plot import VISIBLE, cut, drawing, has_pictures, printable, to_pixels
from ._result import DistillResult

PAGE = "report.html"
_PIXELS = 2**21  # of all pictures together
_SHOWN = 10  # images per class at most
_FOLDED_FROM = 100  # classes, of which the further ones are folded away
_CONFUSIONS = 12  # pairs of classes in the table
_NOT_SETTINGS = ("command", "dataset", "versions", "steps_done", "images_per_class")
_MEASURE = f"rcig-eqx evaluate distilled.safetensors --full --report {PAGE}"


def save_report(
    path: str | os.PathLike[str],
    result: DistillResult,
    evaluation: Evaluation | None = None,
    *,
    full: Evaluation | float | None = None,
) -> Path:
    """Write a page of a distilled set: pictures with class names, accuracies, learning curve,
    confusion matrix, bits, settings, versions, time, and the command that repeats the run.

    It is one file of HTML, which holds its pictures, fetches nothing and runs no script. It shows
    up to ten images per class, fewer or smaller ones where they are many.

    **Arguments:**

    - `path`: a file `….html`, or a folder, in which it is `report.html`.
    - `result`: what `distill` or `load_result` returned.
    - `evaluation`: what `evaluate` measured on it. Without one the page says so.
    - `full`: the accuracy of all of the training data, as
      [`evaluate_full`][rcig_eqx.evaluation.evaluate_full] measures it or as a fraction of one.

    **Returns:** the file. Needs Jinja and matplotlib, the extra `report`. Raises `ValueError` for
    an evaluation of other classes, `ImportError`, which names the extra, and `OSError`.
    """
    for name, given in (("evaluation", evaluation), ("full", full)):
        if isinstance(given, Evaluation) and set(given.class_names) != set(result.class_names):
            raise ValueError(f"{name} is of other classes: pass what was measured on this result.")
    try:
        import jinja2
    except ImportError as error:
        raise ImportError("Reports need Jinja: pip install 'rcig-eqx[report]'.") from error
    source = importlib.resources.files(__package__).joinpath(PAGE).read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(source).render(
        _head(result),
        accuracies=list(_accuracies(evaluation, full, len(result.class_names))),
        gallery=_gallery(result, evaluation) if has_pictures(result.coreset) else None,
        evaluation=evaluation and _evaluated(evaluation),
        measure=_measure(result),
        figures=dict(_figures(result, evaluation)),
        confused=_confused(evaluation),
        classes=_classes(result, evaluation),
        settings={k: said(v) for k, v in result.recipe.items() if k not in _NOT_SETTINGS},
        versions=result.recipe.get("versions", {}),
    )
    path = user_path(path)
    path = path if path.suffix in (".html", ".htm") else path / PAGE
    write_atomically(path, page.encode("utf-8", "replace"))
    return path


def _head(result: DistillResult) -> dict[str, Any]:
    """What the set is, in words and a few numbers."""
    recipe, images = result.recipe, result.coreset.images
    shape, classes = images.shape[1:], len(result.class_names)
    seconds = result.history.get("seconds", np.zeros(0))
    bits = recipe.get("bits_per_class")
    today = datetime.date.today()
    real = math.prod(shape) * (8 if len(shape) == 3 else 32)
    return {
        "title": printable(str(recipe.get("dataset", "custom"))),
        "count": len(images),
        "per_class": len(images) // classes,
        "class_count": classes,
        "what": noun(shape),
        "shape": "×".join(map(str, shape)) + " numbers" * (len(shape) == 1),
        "flip": result.coreset.flip,
        "bits": bits,
        "bits_as": bits / real if bits else None,
        "steps": recipe["steps"],
        "steps_done": recipe["steps_done"],
        "time": duration(float(seconds[-1])) if len(seconds) else None,
        "command": recipe.get("command"),
        "written": f"{today.day} {today:%B %Y}",
        "version": versions()["rcig-eqx"],
    }


def _measure(result: DistillResult) -> dict[str, str]:
    """How to measure what was not: in the run's folder, or in Python."""
    if "command" in result.recipe:
        return {"code": _MEASURE, "where": "In the folder of this page:"}
    code = "save_report(path, result, evaluate(result, test, key=key), full=evaluate_full(…))"
    return {"code": code, "where": "In Python:"}


def _accuracies(
    evaluation: Evaluation | None, full: Evaluation | float | None, classes: int
) -> Iterator[dict[str, Any]]:
    """What the accuracies are of, and how high each is; `None` where it was not measured."""
    beside = evaluation and evaluation.baseline
    rows = {
        "This distilled set": evaluation,
        "As many random real images": beside,
        "All of the training data": full,
    }
    for name, part in rows.items():
        if isinstance(part, Evaluation):
            found = {"mean": part.mean, "each": part.accuracies.tolist()}
            yield {"name": name, "said": summary(part.accuracies), **found}
        elif part is not None:
            yield {"name": name, "said": f"{part:.2%}", "mean": float(part), "each": []}
        else:
            yield {"name": name, "said": "not measured", "mean": None, "each": []}


def _evaluated(evaluation: Evaluation) -> dict[str, Any]:
    """What the accuracies were measured with."""
    tested, training = evaluation.tested_on, evaluation.training
    parts = [evaluation, evaluation.baseline or dataclasses.replace(evaluation, metrics={})]
    return {
        "networks": len(evaluation.accuracies),
        "steps": evaluation.steps,
        "images": tested.get("images"),
        "network": said(training.get("network", {}).get("name")),
        "remarks": evaluation.remarks,
        "training": {"tested on": said(tested), **{k: said(v) for k, v in training.items()}},
        "metrics": {
            name: [part.metrics[name].mean() if name in part.metrics else None for part in parts]
            for name in evaluation.metrics
        },
    }


def _classes(result: DistillResult, evaluation: Evaluation | None) -> list[dict[str, Any]]:
    """The accuracy on each class, and that of random images."""
    if evaluation is None:
        return []
    own, beside = _by_name(evaluation), _by_name(evaluation.baseline)
    return [
        {"name": printable(name), "own": own.get(name), "random": beside.get(name)}
        for name in result.class_names
    ]


def _by_name(evaluation: Evaluation | None) -> dict[str, float | None]:
    if evaluation is None:
        return {}
    means = zip(evaluation.class_names, evaluation.per_class.mean(0), strict=True)
    return {name: float(mean) if math.isfinite(mean) else None for name, mean in means}


def _confused(evaluation: Evaluation | None) -> list[dict[str, Any]]:
    """The pairs of classes that are most often taken for each other."""
    if evaluation is None or evaluation.confusion is None:
        return []
    counts = evaluation.confusion
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    np.fill_diagonal(share, 0)
    names = [cut(name, 40) for name in evaluation.class_names]
    most = np.argsort(share, axis=None)[::-1][:_CONFUSIONS]
    pairs = [divmod(int(at), len(names)) for at in most]
    return [
        {"of": names[a], "taken": names[b], "share": share[a, b]} for a, b in pairs if share[a, b]
    ]


def _gallery(result: DistillResult, evaluation: Evaluation | None) -> dict[str, Any]:
    """The pictures of each class, with what is to be said of them all."""
    pixels = to_pixels(result.coreset, compress=True)
    names, (n, h, w, channels) = result.class_names, pixels.shape
    each = n // len(names)
    shown = max(1, min(each, _SHOWN, _PIXELS // (len(names) * h * w)))
    smaller = math.ceil(math.sqrt(len(names) * shown * h * w / _PIXELS))
    notes = []
    if shown < each:
        notes.append(f"The first {shown} of {each} images of each class.")
    if smaller > 1:
        notes.append(f"Pictures have 1/{smaller} of the width and height.")
    if channels not in VISIBLE:
        notes.append(f"Pictures are the mean of {channels} channels.")
        pixels = pixels.mean(3, keepdims=True)
    accuracy = _by_name(evaluation)
    classes = [
        {
            "name": printable(name),
            "images": [_png(image, smaller) for image in images[:shown]],
            "accuracy": accuracy.get(name),
        }
        for name, images in zip(names, np.split(pixels, len(names)), strict=True)
    ]
    return {
        "first": classes[:_FOLDED_FROM],
        "more": classes[_FOLDED_FROM:],
        "columns": min(shown, 5),
        "sharp": max(h, w) <= 96,  # pixels as squares
        "notes": notes,
        "ratio": f"{w} / {h}",
    }


def _png(pixels: Float[np.ndarray, "h w c"], smaller: int) -> str:
    """An image as an address that holds it."""
    from PIL import Image  # comes with matplotlib

    whole = np.round(255 * np.clip(pixels, 0, 1)).astype(np.uint8)
    picture = Image.fromarray(whole[..., 0] if whole.shape[2] == 1 else whole)
    file = io.BytesIO()
    (picture.reduce(smaller) if smaller > 1 else picture).save(file, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _figures(result: DistillResult, evaluation: Evaluation | None) -> Iterator[tuple[str, Any]]:
    """Drawings by name; one that fails is left out with a warning."""
    with drawing(but=ImportError):
        for name in ("loss", "accuracy"):
            if len(result.history.get(name, ())):
                yield name, _svg(history_figure(result.history, [name]), name)
    with drawing(but=ImportError):
        if evaluation is not None and evaluation.confusion is not None:
            figure = confusion_figure(evaluation.confusion, evaluation.class_names)
            yield "confusion", _svg(figure, "confusion")
    with drawing(but=ImportError):
        if not has_pictures(result.coreset):
            yield (
                "rows",
                _svg(rows_figure(np.asarray(result.coreset.images), result.class_names), "rows"),
            )


def _svg(figure: Any, name: str) -> Any:
    """A figure as markup that takes the color of the text around it."""
    import matplotlib
    from markupsafe import Markup  # comes with jinja2

    file = io.StringIO()
    options: Any = {"svg.fonttype": "none", "svg.hashsalt": name}
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context(options), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*Glyph .* missing from")  # the browser has it
        look: Any = {"transparent": True, "bbox_inches": "tight", "pad_inches": 0.05}
        figure.savefig(file, format="svg", metadata=nothing, **look)
    text = file.getvalue()
    text = text[text.index("<svg") :].replace("#000000", "currentColor")
    return Markup(text)


def duration(seconds: float) -> str:
    """A time in words: 42 s, 3 min 20 s, 2 h 5 min."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    hours, left = divmod(minutes, 60)
    return f"{hours} h {left} min" if hours else f"{minutes} min {rest} s"


def said(value: Any) -> str:
    """A setting in words."""
    if isinstance(value, Mapping):
        rest = ", ".join(f"{k} {said(v)}" for k, v in value.items() if k != "name")
        name = str(value.get("name", ""))
        return f"{name} ({rest})" if name and rest else name or rest
    if isinstance(value, list | tuple):
        return ", ".join(map(said, value))
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return printable(f"{value:g}" if isinstance(value, float) else re.sub(r"\s+", " ", str(value)))
