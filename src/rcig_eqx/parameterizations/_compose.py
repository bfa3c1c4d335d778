"""Stages, each of which changes how images or labels are stored, and their composition."""

import abc
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import ArgumentError
from .._coreset import Coreset
from ._parameterization import AbstractParameterization
from ._read import numbers

FIELDS = ("images", "labels")


class Extra(eqx.Module):
    """What a stage stores beside the numbers: arrays by name, and the shape of one input."""

    arrays: dict[str, Any]
    shape: tuple[int, ...] = eqx.field(static=True, default=())


class Stored(eqx.Module):
    """ψ of a composition: the numbers that stand for images and labels, and each stage's extra."""

    images: Float[Array, "n *numbers"]
    labels: Float[Array, "n classes"]
    log_temperature: Float[Array, ""]
    extras: tuple[Extra, ...]
    flip: bool = eqx.field(static=True)


class AbstractStages(AbstractParameterization):
    """Stages one after another, in the order in which they encode."""

    @property
    @abc.abstractmethod
    def stages(self) -> "tuple[AbstractStage, ...]":
        """One or more."""

    def encode(self, coreset: Coreset) -> Stored:
        now: dict[str, Any] = {name: getattr(coreset, name) for name in FIELDS}
        extras = []
        for stage in self.stages:
            now[stage.changes], extra = stage.forward(now[stage.changes])
            extras.append(extra)
        return Stored(
            now["images"], now["labels"], coreset.log_temperature, tuple(extras), coreset.flip
        )

    def decode(self, psi: Stored) -> Coreset:
        now: dict[str, Any] = {name: getattr(psi, name) for name in FIELDS}
        for stage, extra in reversed(list(zip(self.stages, psi.extras, strict=True))):
            now[stage.changes] = stage.backward(now[stage.changes], extra)
        return Coreset(now["images"], now["labels"], psi.log_temperature, flip=psi.flip)

    def bits(self, psi: Stored) -> int:
        """Numbers at their bits, ranges and the like as wide as they are."""
        extras = {
            f"{name}.{key}": array
            for _, extra, name in self._named(psi)
            for key, array in extra.arrays.items()
        }
        return count_bits(self.layout(psi), extras)

    def pack(self, psi: Stored) -> dict[str, np.ndarray]:
        arrays: dict[str, Any] = {name: getattr(psi, name) for name in (*FIELDS, "log_temperature")}
        for stage, extra, name in self._named(psi):
            arrays |= stage.arrays(getattr(psi, stage.changes), extra, name)
        return {name: np.asarray(array) for name, array in arrays.items()}

    def unpack(self, arrays: Mapping[str, np.ndarray], like: Stored) -> Stored:
        now: dict[str, Any] = {name: arrays[name] for name in FIELDS}
        extras = []
        for stage, extra, name in self._named(like):
            field = stage.changes
            now[field], again = stage.restored(arrays, getattr(like, field).shape, extra, name)
            extras.append(
                Extra({key: jnp.asarray(array) for key, array in again.items()}, extra.shape)
            )
        images, labels = (jnp.asarray(now[name]) for name in FIELDS)
        temperature = jnp.asarray(arrays["log_temperature"])
        return Stored(images, labels, temperature, tuple(extras), like.flip)

    def layout(self, psi: Stored) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for field in FIELDS:
            shape = getattr(psi, field).shape
            made[field] = {
                "numbers": {"array": field, "shape": list(shape), "bits": 32},
                "then": [],
            }
        for stage, extra, name in self._named(psi):
            part, shape = made[stage.changes], getattr(psi, stage.changes).shape
            part["numbers"] = stage.numbers(shape, name)
            part["then"] = stage.steps(shape, extra, name) + part["then"]
        return made

    def _named(self, psi: Stored) -> "Iterator[tuple[AbstractStage, Extra, str]]":
        for i, (stage, extra) in enumerate(zip(self.stages, psi.extras, strict=True)):
            yield stage, extra, f"{stage.changes}.{i}"


class AbstractStage(AbstractStages):
    """One step from images or labels to the numbers that are stored, and back.

    - `changes`: `"images"` or `"labels"`.
    - `rounds`: whether the numbers are integers where they are stored, and nothing comes after.
    """

    changes: ClassVar[str] = "images"
    rounds: ClassVar[bool] = False

    @property
    def stages(self) -> "tuple[AbstractStage, ...]":
        return (self,)

    def __str__(self) -> str:
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        return f"{type(self).__name__}({', '.join(str(v) for v in values if v is not None)})"

    @abc.abstractmethod
    def forward(self, x: Float[Array, "n ..."]) -> tuple[Float[Array, "n ..."], Extra]:
        """Numbers that stand for these, and what is stored beside them."""

    @abc.abstractmethod
    def backward(self, x: Float[Array, "n ..."], extra: Extra) -> Float[Array, "n ..."]:
        """The numbers back; differentiable."""

    def numbers(self, shape: tuple[int, ...], name: str) -> dict[str, Any]:
        """Where the numbers are, and how; the names of the extras begin with `name`."""
        return {"array": self.changes, "shape": list(shape), "bits": 32}

    def steps(self, shape: tuple[int, ...], extra: Extra, name: str) -> list[dict[str, Any]]:
        """What a reader does to the numbers of this stage, which have this shape."""
        return []

    def arrays(self, x: Float[Array, "n ..."], extra: Extra, name: str) -> dict[str, Any]:
        """The numbers and the extras as they are stored, by name."""
        return {self.changes: x} | {f"{name}.{key}": a for key, a in extra.arrays.items()}

    def restored(
        self, arrays: Mapping[str, np.ndarray], shape: tuple[int, ...], extra: Extra, name: str
    ) -> tuple[Any, dict[str, Any]]:
        """The numbers, which have this shape, and the extras again."""
        again = {key: arrays[f"{name}.{key}"] for key in extra.arrays}
        return numbers(arrays, self.numbers(shape, name)), again


class Composition(AbstractStages):
    """What `compose` returns."""

    of: tuple[AbstractStage, ...]

    def __str__(self) -> str:
        return " + ".join(map(str, self.of))

    @property
    def stages(self) -> tuple[AbstractStage, ...]:
        return self.of


def specs(layout: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every part of a layout that says where numbers are, how many, and of how many bits."""
    for part in layout.values():
        yield part["numbers"]
        for step in part["then"]:
            yield from (value for value in step.values() if isinstance(value, dict))


def count_bits(layout: Mapping[str, Any], arrays: Mapping[str, Any]) -> int:
    """Those of the numbers that a layout places, and of all other arrays as wide as they are."""
    whole = {name: 8 * array.size * array.dtype.itemsize for name, array in arrays.items()}
    placed = {s["array"]: s["bits"] * math.prod(s["shape"]) for s in specs(layout)}
    return sum((whole | placed).values())


def compose(*stages: AbstractStage) -> Composition:
    """Stages in the order in which they encode, such as
    `compose(Downsampled(2), Quantized(8), LabelBits(8))`.

    Raises `ValueError` for what is no stage, and for one after the rounding of the same numbers.
    """
    rounded: set[str] = set()
    for stage in stages:
        if not isinstance(stage, AbstractStage):
            raise ArgumentError("stages", f"has {stage!r}: pass stages such as Quantized(8).")
        if stage.changes in rounded:
            raise ArgumentError(
                "stages",
                f"changes {stage.changes} after they are rounded, by {type(stage).__name__}: put "
                "what rounds last.",
            )
        rounded |= {stage.changes} if stage.rounds else set()
    if not stages:
        raise ArgumentError("stages", "is empty: pass one or more, or use plain().")
    return Composition(tuple(stages))
