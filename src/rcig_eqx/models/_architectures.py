"""Ready networks by name: makers for a data set, and descriptions to make them again by."""

from typing import Any, Literal, TypeGuard

import equinox as eqx
from jaxtyping import PRNGKeyArray

from .._checks import check_known
from .._registry import Registry
from ._blocks import AbstractBlockNetwork
from ._convnet import ConvNet, convnet_for
from ._network import AbstractNetwork
from ._normalize import check_normalization
from ._plain import VGG11, AlexNet
from ._resnet import ResNet18

NETWORKS: Registry[AbstractNetwork] = Registry(
    "networks", convnet=ConvNet, resnet18=ResNet18, vgg11=VGG11, alexnet=AlexNet
)
"""Networks by name: functions of `in_channels`, `image_size`, `num_classes` and `key`, and of those
of the options of [`network_for`][rcig_eqx.models.network_for] that they are to take."""
_READY = (ConvNet, ResNet18, VGG11, AlexNet)
_CONVNET_ONLY = ("depth", "growth")


class network_for(eqx.Module):
    """A function from a key to a ready network that fits a data set: what `model=` takes.

    **Arguments:**

    - `name`: `"convnet"`, `"resnet18"`, `"vgg11"` or `"alexnet"`; case and hyphens are as you like.
    - `image_shape`: height, width, channels.
    - `num_classes`: outputs.
    - `width`: filters of the first convolution; the usual number if `None`, 128 for convnet and
      alexnet, 64 for the others.
    - `normalization`: `"batch"`, `"instance"`, `"layer"`, `"group"`, or `"none"`, which `None`
      means as well.
    - `softplus`: the inverse temperature to smooth the activation with, `None` for ReLU.
      `"paper"` is 60 for a convnet of depth 3, and ReLU for the rest (appendix C).
    - `depth`, `growth`: of a convnet alone, as in [`convnet_for`][rcig_eqx.convnet_for].

    Raises `ValueError` for a name or a normalisation that is none, with the nearest that are, and
    for options that an architecture has not.
    """

    name: str = eqx.field(static=True)
    image_shape: tuple[int, int, int] = eqx.field(static=True)
    num_classes: int = eqx.field(static=True)
    width: int | None = eqx.field(static=True, default=None, kw_only=True)
    normalization: str | None = eqx.field(static=True, default=None, kw_only=True)
    softplus: float | Literal["paper"] | None = eqx.field(
        static=True, default="paper", kw_only=True
    )
    depth: int | None = eqx.field(static=True, default=None, kw_only=True)
    growth: int | None = eqx.field(static=True, default=None, kw_only=True)

    def __check_init__(self):
        name = architecture_name(self.name)
        check_normalization(self.normalization)
        for option in _CONVNET_ONLY:
            if getattr(self, option) is not None and name != "convnet":
                raise ValueError(f"{option} is of a convnet alone: leave it out for {self.name}.")

    def __call__(self, key: PRNGKeyArray) -> AbstractNetwork:
        """A fresh network."""
        name = architecture_name(self.name)
        options: dict[str, Any] = {o: getattr(self, o) for o in ("width", *_CONVNET_ONLY)}
        options = {option: value for option, value in options.items() if value is not None}
        if name == "convnet":
            options |= {"softplus": self.softplus, "normalization": self.normalization}
            return convnet_for(self.image_shape, self.num_classes, **options)(key)
        height, width, channels = self.image_shape
        sizes = {"in_channels": channels, "image_size": (height, width)}
        if self.normalization is not None:
            options["normalization"] = self.normalization
        if self.softplus not in (None, "paper"):
            options["softplus"] = self.softplus
        return NETWORKS[name](num_classes=self.num_classes, key=key, **sizes, **options)


def architecture_name(name: str) -> str:
    """The plain form of a name; `ValueError` with the nearest for one that is none."""
    plain = name.lower().replace("-", "").replace("_", "")
    if plain in NETWORKS:
        return plain
    check_known("architecture", name, NETWORKS)
    return name


def is_ready(model: Any) -> TypeGuard[AbstractBlockNetwork]:
    """Whether a network is one of the ready ones."""
    return isinstance(model, _READY)


def describe_network(model: eqx.Module) -> dict[str, Any]:
    """A network in plain values: its name and, of a ready one, enough to make it again."""
    name = type(model).__name__
    if not is_ready(model):
        return {"name": name}
    first = model.blocks[0]
    description = {"name": name, "width": first.kernel.shape[-1]}
    if isinstance(model, ConvNet):
        description["depth"] = len(model.blocks)
        growth = model.blocks[1].kernel.shape[-1] // description["width"] if model.blocks[1:] else 2
        description |= {"growth": growth} if growth != 2 else {}
    description["normalization"] = first.normalize.kind if first.normalize else "none"
    beta = model.softplus
    description["activation"] = "relu" if beta is None else f"softplus({beta} x) / {beta}"
    return description
