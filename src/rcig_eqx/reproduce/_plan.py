"""How a row is run: at which scale, by which method, with which arguments of `distill`."""

import dataclasses
import functools
from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from .. import methods, presets
from .._recipe import Recipe, default_batch_size
from ..data import AbstractPreprocess, standardize, zca
from ..evaluation._train_network import usual_training
from ..methods import AbstractMethod, default_method
from ..models import network_for
from ..privacy._membership import SNAPSHOTS
from ._rows import Row


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much of the paper's work is done; what is `None` is the row's own, or the settings'.

    Of the library's settings, and of any at a part of the steps, the outer batch is what `distill`
    takes for a set of this size. Mirrored images are counted in budgets.
    """

    name: str  # what runs of this scale are filed under
    part: float = 1.0  # of the row's outer iterations
    image_budget: int | None = None  # distilled images that a run's iterations go through at most
    # Of the exact method's dual system at most; the default method has no exact half for larger
    # sets, which are `frepo_platt`'s then.
    unknowns: int | None = None
    # Width times the side of an image (of 32 pixels at least), at most, so that a pass through an
    # image costs about the same whatever its size.
    breadth: int | None = None
    steps: int | None = None  # outer iterations
    width: int | None = None  # filters of the first block
    batch_size: int | None = None
    pool: int | None = None  # networks of the pool
    seeds: int = 3  # distilled sets of a row
    networks: int | None = 5  # evaluated on each; three or what the next allows, one at least
    evaluation_budget: int | None = None  # images that these networks are trained on at most
    evaluation_steps: int | None = None  # of each of them
    chunks: int = 5  # sets that membership is inferred from (appendix C)
    # Training steps at which the networks of those sets are attacked; with `evaluation_steps`, in
    # the same proportions to that number.
    attacked_at: tuple[int, ...] = SNAPSHOTS
    counts: tuple[int, ...] = (0, 2, 5, 10, 20, 30)  # of steps, the grid of Figures 1 and 2

    def steps_of(self, row: Row) -> int:
        """Outer iterations."""
        steps = round(self.part * row.steps)
        return self.steps or _at_most(steps, self.image_budget, row.mirrored_images)

    def width_of(self, row: Row) -> int:
        """Filters of the first block."""
        return self.narrowed(row) or row.width

    def narrowed(self, row: Row) -> int | None:
        """Filters of the first block of any network, `None` if each has its own."""
        side = max(32, row.facts.shape[0])
        return self.width or (_at_most(row.width, self.breadth, side) if self.breadth else None)

    def evaluation_steps_of(self, row: Row, *, attacked: bool = False) -> int:
        """Of an evaluation network, or of one under attack."""
        if attacked:
            return self.snapshots()[-1]
        return self.evaluation_steps or usual_training(row.images).steps

    def networks_of(self, row: Row, *, attacked: bool = False) -> int:
        """Evaluated on each set, or attacked."""
        batch = min(row.mirrored_images, 256)  # `evaluate`'s
        images = self.evaluation_steps_of(row, attacked=attacked) * batch
        return self.networks or _at_most(3, self.evaluation_budget, images)

    def snapshots(self) -> tuple[int, ...]:
        """Training steps at which networks are attacked."""
        if self.evaluation_steps is None:
            return self.attacked_at
        part = self.evaluation_steps / self.attacked_at[-1]
        return tuple(sorted({max(1, round(part * step)) for step in self.attacked_at}))

    def method(self, row: Row, name: str) -> str:
        """The name of the method that a row is distilled by."""
        unknowns = row.mirrored_images * row.facts.classes
        if name == "default" and self.unknowns is not None and unknowns > self.unknowns:
            return "frepo_platt"
        return name

    def changed(self, **given: Any) -> "Scale":
        """With what is not `None`; runs of it are filed apart."""
        given = {k: v for k, v in given.items() if v is not None and v != getattr(self, k)}
        # What changes how sets are evaluated, or how many there are, makes no other sets.
        adds = ("seeds", "networks", "evaluation_steps", "chunks", "attacked_at", "counts")
        apart = [f"{k}{v}" for k, v in given.items() if k not in adds]
        return dataclasses.replace(self, **given, name="-".join([self.name, *apart]))


SCALES = {
    "paper": Scale("paper"),
    "small": Scale(
        "small",
        part=0.02,
        image_budget=50_000,
        unknowns=2_000,
        breadth=32 * 32,
        pool=10,
        seeds=1,
        networks=None,
        evaluation_budget=600_000,
        chunks=1,
        attacked_at=(125, 250, 500, 1000),
        counts=(0, 2, 5, 20),
    ),
}
"""The paper's scale, and one that fits two CPU cores, by name."""


def _at_most(number: int, total: int | None, each: int) -> int:
    """So many, one at least, and no more than come to a total."""
    return max(1, number if total is None else min(number, total // each))


METHODS: Mapping[str, Callable[..., AbstractMethod] | None] = ChainMap(
    methods.METHODS,  # pyright: ignore[reportArgumentType]  # which is read and never written to
    {"default": None},
)
"""Methods by name; `"default"`, which goes by the number of steps, is `None`."""
SETTINGS: dict[str, Callable[..., Recipe]] = {
    "library": lambda method, **changed: Recipe(method(**changed)),
    "paper": presets.paper,
    "authors_code": presets.authors_code,
}
"""What is not the method: optimizer, pool, average, outer batch."""


def _options(row: Row, method: str) -> dict[str, Any]:
    """The row's λ, backward pass and precision, as far as the method has them."""
    options = {"l2_rate": row.l2_rate, "subset": row.subset}
    made = (METHODS[method] or functools.partial(default_method, 2))()
    if made.head_l2_rate is not None:
        options["dtype"] = jnp.float64 if row.float64 else None
    return options if method == "default" else {k: options[k] for k in options if k in vars(made)}


def model_of(row: Row, scale: Scale, normalization: str | None = None, **changed: Any):
    """The row's ConvNet, to distill with."""
    given = {"width": scale.width_of(row), "depth": row.depth, "normalization": normalization}
    return network_for("convnet", row.facts.shape, row.facts.classes, **(given | changed))


def preprocess_of(row: Row, train: Any, *, progress: bool = False) -> AbstractPreprocess:
    """Standardized if gray, whitened if color, large images in blocks (appendix C)."""
    if row.facts.shape[2] == 1:
        return standardize(train, progress=progress)
    return zca(train, 0.1, row.block, progress=progress)


def arguments(
    row: Row, scale: Scale, method: str, settings: str = "library", normalization: str | None = None
) -> dict[str, Any]:
    """Keyword arguments of `distill` for this row, but for data, key and preprocessing.

    Within the settings of a preset a method has that preset's options: the authors' code clips, for
    instance. The default is composed of two, and has none of them.
    """
    method = scale.method(row, method)
    steps = 1 if method == "random" else scale.steps_of(row)
    make = METHODS[method] or functools.partial(default_method, steps)
    recipe = SETTINGS[settings](make, **_options(row, method))
    batch_size = scale.batch_size or recipe.batch_size
    if scale.batch_size is None and (settings == "library" or scale.part < 1):
        batch_size = default_batch_size(row.images)
    pool = dataclasses.replace(recipe.pool, size=scale.pool or recipe.pool.size)
    return {
        "images_per_class": row.images_per_class,
        "steps": steps,
        "method": recipe.method,
        "model": model_of(row, scale, normalization),
        "batch_size": batch_size,
        "recipe": dataclasses.replace(recipe, pool=pool, flip=row.flip),
    }
