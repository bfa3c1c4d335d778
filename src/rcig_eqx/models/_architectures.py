"""Ready networks by name: makers for a data set, and descriptions to make them again by."""

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.random as jr
from jaxtyping import PRNGKeyArray

from .._checks import ArgumentError, check_known
from .._registry import Registry
from ._convnet import ConvNet
from ._mlp import MLP
from ._network import AbstractNetwork, MakeModel
from ._zoo import VGG11, AlexNet, ResNet18

NETWORKS: Registry[AbstractNetwork] = Registry(
    "networks",
    convnet=ConvNet.for_shape,
    resnet18=ResNet18.for_shape,
    vgg11=VGG11.for_shape,
    alexnet=AlexNet.for_shape,
    mlp=MLP.for_shape,
)
"""Networks by name: functions of the shape of an input, the number of classes and `key`, and of
those of the options of [`network_for`][rcig_eqx.models.network_for] that they take."""


class network_for(eqx.Module):
    """A function from a key to a ready network that fits a data set: what `model=` takes.

    **Arguments:**

    - `name`: one of `NETWORKS`; case and hyphens are as you like.
    - `image_shape`: height, width, channels; for an `"mlp"` any shape, such as `(columns,)`.
    - `num_classes`: outputs.
    - `width`: filters of the first convolution, or units of a hidden layer; the usual number if
      `None`: 128 for convnet and alexnet, 256 for mlp, 64 for the others.
    - `normalization`: `"batch"`, `"instance"`, `"layer"`, `"group"`, or `"none"`, which `None`
      means as well.
    - `softplus`: the inverse temperature to smooth the activation with, `None` for ReLU.
      `"paper"` is 60 for a convnet of depth 3 and an mlp, and ReLU for the rest (appendix C).
    - `depth`, `growth`: of a convnet, as in [`convnet_for`][rcig_eqx.convnet_for]; an mlp has a
      `depth`, its hidden layers.

    Raises `ValueError` for an unknown name or normalization, with the nearest known one, and for an
    option that the architecture does not take.
    """

    name: str = eqx.field(static=True)
    image_shape: tuple[int, ...] = eqx.field(static=True)
    num_classes: int = eqx.field(static=True)
    width: int | None = eqx.field(static=True, default=None, kw_only=True)
    normalization: str | None = eqx.field(static=True, default=None, kw_only=True)
    softplus: float | Literal["paper"] | None = eqx.field(
        static=True, default="paper", kw_only=True
    )
    depth: int | None = eqx.field(static=True, default=None, kw_only=True)
    growth: int | None = eqx.field(static=True, default=None, kw_only=True)

    def __check_init__(self):
        architecture_name(self.name)
        eqx.filter_eval_shape(self, jax.eval_shape(lambda: jr.key(0)))

    def __call__(self, key: PRNGKeyArray) -> AbstractNetwork:
        """A fresh network."""
        names = ("width", "normalization", "softplus", "depth", "growth")
        options = {name: getattr(self, name) for name in names}
        options = {name: value for name, value in options.items() if value is not None}
        make = NETWORKS[architecture_name(self.name)]
        return make(self.image_shape, self.num_classes, key=key, **options)


def convnet_for(
    image_shape: tuple[int, ...],
    num_classes: int,
    width: int = 128,
    depth: int | None = None,
    softplus: float | Literal["paper"] | None = "paper",
    normalization: str | None = None,
    growth: int = 2,
) -> Callable[[PRNGKeyArray], ConvNet]:
    """A function from a key to a `ConvNet` that fits a data set: what `model=` takes.

    **Arguments:**

    - `image_shape`: height, width, channels.
    - `num_classes`: outputs.
    - `width`: filters of the first block.
    - `depth`: blocks; `None` is the paper's 3, 4 or 5 for images of up to 32, 64 or more pixels.
    - `softplus`: `"paper"` distills depth 3 with β = 60 and the rest with ReLU (appendix C); a
      number or `None` as in [`ConvNet`][rcig_eqx.models.ConvNet].
    - `normalization`, `growth`: as in [`ConvNet`][rcig_eqx.models.ConvNet].

    Raises `ValueError` for a size below one, an invalid activation, an unknown normalization, and
    images too small for the depth.
    """
    given: Any = {"width": width, "depth": depth, "growth": growth}
    given |= {"softplus": softplus, "normalization": normalization}
    return network_for("convnet", image_shape, num_classes, **given)  # pyright: ignore[reportReturnType]


def default_network(shape: tuple[int, ...], num_classes: int) -> MakeModel:
    """The paper's `ConvNet` for images, an `MLP` for rows of a table and embeddings.

    Raises `ValueError` for inputs of another shape.
    """
    return network_for(default_architecture(shape), shape, num_classes)


def default_architecture(shape: tuple[int, ...]) -> str:
    """The name of the network for inputs of a shape; `ValueError` where none is ready."""
    ready = {1: "mlp", 3: "convnet"}
    if len(shape) not in ready:
        raise ArgumentError(
            "model",
            f"is left out, and no ready network is for inputs {list(shape)}: pass a "
            "models.Network of your own, or images[..., None] if these are images without a "
            "channel.",
        )
    return ready[len(shape)]


PAPER_WIDTH = 128
_CPU_BREADTH = 32 * 32  # width times the side of an image: a pass costs about the same for all


def cpu_width(architecture: str, shape: tuple[int, ...]) -> int | None:
    """The width of a convnet that two CPU cores have time for; `None` for other networks.

    32 for images of up to 32 pixels, and less for larger ones. A step of width w takes some
    (w / 32)^1.8 times as long (`docs/settings.md`).
    """
    if architecture_name(architecture) != "convnet" or len(shape) != 3:
        return None
    return max(8, _CPU_BREADTH // max(32, *shape[:2]))


def architecture_name(name: str) -> str:
    """The plain form of a name. `ValueError` for an unknown one, with the nearest."""
    plain = name.lower().replace("-", "").replace("_", "")
    if plain in NETWORKS:
        return plain
    check_known("architecture", name, NETWORKS)
    return name


def describe_network(model: AbstractNetwork) -> dict[str, Any]:
    """A network in plain values: its name and, of a ready one, enough to make it again."""
    return {"name": type(model).__name__, **model.describe()}
