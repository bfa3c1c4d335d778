"""Networks as Equinox modules with a body and a head."""

from ._conv import average_pool as average_pool, conv2d as conv2d, softplus as softplus
from ._convnet import (
    ConvBlock as ConvBlock,
    ConvNet as ConvNet,
    convnet_for as convnet_for,
)
from ._network import (
    AbstractNetwork as AbstractNetwork,
    Head as Head,
    Network as Network,
    count_parameters as count_parameters,
    partition as partition,
    split_network as split_network,
)

# So that help() lists them.
__all__ = [name for name in dir() if not name.startswith("_")]  # pyright: ignore[reportUnsupportedDunderAll]
