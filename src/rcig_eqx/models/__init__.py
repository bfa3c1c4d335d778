"""Networks as Equinox modules with a body and a head."""

from ._architectures import (
    NETWORKS as NETWORKS,
    convnet_for as convnet_for,
    describe_network as describe_network,
    network_for as network_for,
)
from ._blocks import ConvBlock as ConvBlock
from ._conv import (
    average_pool as average_pool,
    conv2d as conv2d,
    max_pool as max_pool,
    softplus as softplus,
)
from ._convnet import ConvNet as ConvNet
from ._mlp import MLP as MLP
from ._network import (
    AbstractNetwork as AbstractNetwork,
    Head as Head,
    MakeModel as MakeModel,
    Network as Network,
    count_parameters as count_parameters,
    partition as partition,
    split_network as split_network,
    split_parameters as split_parameters,
)
from ._normalize import Normalize as Normalize, Statistics as Statistics
from ._training import (
    AbstractBatchNetwork as AbstractBatchNetwork,
    training_outputs as training_outputs,
    with_statistics as with_statistics,
)
from ._zoo import VGG11 as VGG11, AlexNet as AlexNet, ResNet18 as ResNet18

__all__ = [
    "MLP",
    "NETWORKS",
    "AbstractBatchNetwork",
    "AbstractNetwork",
    "ConvNet",
    "Head",
    "Network",
    "Statistics",
    "average_pool",
    "conv2d",
    "convnet_for",
    "network_for",
    "partition",
]
