"""The ready networks written out in PyTorch, with the numbers of ours."""

import jax
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

from rcig_eqx.models import ConvBlock

torch.set_num_threads(1)

# Filters in widths, size of the filters, whether a pool follows.
ROWS = {
    "convnet": [(1, 3, True), (2, 3, True)],
    "alexnet": [(1, 5, True), (1.5, 5, True), (2, 3, False), (1.5, 3, False), (1.5, 3, True)],
    "vgg11": [(1, 3, True), (2, 3, True), (4, 3, False), (4, 3, True), (8, 3, False)],
}
ROWS["vgg11"] += [(8, 3, True), (8, 3, False), (8, 3, True)]
NORMS = (nn.BatchNorm2d, nn.InstanceNorm2d, nn.LayerNorm, nn.GroupNorm)


def convolution(kind, i, o, size, stride, side, padding, bias):
    """A convolution to a map of `side` pixels, and its normalization."""
    normalize = {
        "none": [],
        "batch": [nn.BatchNorm2d(o, momentum=1.0)],
        "instance": [nn.InstanceNorm2d(o, affine=True)],
        "layer": [nn.LayerNorm([o, side, side])],
        "group": [nn.GroupNorm(4, o)],
    }[kind]
    return [nn.Conv2d(i, o, size, stride, padding, bias=bias), *normalize]


class Residual(nn.Module):
    def __init__(self, kind, i, o, stride, side):
        super().__init__()
        layer = lambda i, size, stride: convolution(  # noqa: E731
            kind, i, o, size, stride, side, size // 2, kind == "none"
        )
        self.main = nn.Sequential(*layer(i, 3, stride), nn.ReLU(), *layer(o, 3, 1))
        self.side = nn.Sequential(*(layer(i, 1, stride) if (i, stride) != (o, 1) else []))

    def forward(self, x):
        return torch.relu(self.main(x) + self.side(x))


def layers(name, kind, shape, width):
    side, _, channels = shape
    if name == "resnet18":
        yield from convolution(kind, channels, width, 3, 1, side, 1, kind == "none")
        yield nn.ReLU()
        channels = width
        for stage, first in ((stage, first) for stage in range(4) for first in (True, False)):
            stride = 2 if stage and first else 1
            side //= stride
            yield Residual(kind, channels, width * 2**stage, stride, side)
            channels = width * 2**stage
        yield nn.AdaptiveAvgPool2d(1)
        return
    extra = 2 if channels == 1 else 0
    for filters, size, pooled in ROWS[name]:
        out, padding = int(filters * width), size // 2 + extra
        side += 2 * padding - size + 1
        yield from convolution(kind, channels, out, size, 1, side, padding, True)
        yield nn.ReLU()
        if pooled:
            yield nn.AvgPool2d(2) if name == "convnet" else nn.MaxPool2d(2)
            side //= 2
        channels, extra = out, 0


def same_network(name, kind, shape, model):
    """A PyTorch body with the numbers of a network of ours, and its normalization layers."""
    body = nn.Sequential(*layers(name, kind, shape, model.blocks[0].kernel.shape[-1])).double()
    is_block = lambda x: isinstance(x, ConvBlock)  # noqa: E731
    blocks = [x for x in jax.tree.leaves(model, is_leaf=is_block) if is_block(x)]
    parameter = lambda x: nn.Parameter(torch.tensor(np.array(x)))  # noqa: E731
    theirs = [module for module in body.modules() if isinstance(module, nn.Conv2d)]
    for module, block in zip(theirs, blocks, strict=True):
        module.weight = parameter(block.kernel.transpose(3, 2, 0, 1))
        assert (module.bias is None) == (block.bias is None)
        if block.bias is not None:
            module.bias = parameter(block.bias)
    norms = [module for module in body.modules() if isinstance(module, NORMS)]
    for module, ours in zip(norms, normalizations(model), strict=True):
        order = (2, 0, 1) if ours.scale.ndim == 3 else (0,)
        module.weight = parameter(ours.scale.transpose(order))
        module.bias = parameter(ours.shift.transpose(order))
        if ours.statistics is not None:
            module.running_mean = torch.tensor(np.array(ours.statistics.mean))
            module.running_var = torch.tensor(np.array(ours.statistics.variance))
    return body, norms


def normalizations(model):
    """The normalization layers of a network of ours, from input to output."""
    is_block = lambda x: isinstance(x, ConvBlock)  # noqa: E731
    blocks = [x for x in jax.tree.leaves(model, is_leaf=is_block) if is_block(x)]
    return [block.normalize for block in blocks if block.normalize is not None]


def outputs(body, model, images):
    """PyTorch's features, flattened in our order, through our head."""
    with torch.no_grad():
        maps = body(torch.tensor(np.array(images)).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    features = maps.reshape(len(images), -1).numpy()
    return features @ np.asarray(model.head.kernel) + np.asarray(model.head.bias)


def trained_outputs(body, norms, model, images, labels, rates, tests):
    """Outputs on other images after full-batch steps of Adam on the mean-squared error.

    Of a body that ends in maps of one pixel; a step moves the stored statistics by a tenth, or by
    more until there are ten, and their variance is the mean of squares, which PyTorch's is not.
    """
    sizes = {}
    head = nn.Linear(*model.head.kernel.shape).double()
    head.weight.data = torch.tensor(np.array(model.head.kernel.T))
    head.bias.data = torch.tensor(np.array(model.head.bias))
    network = nn.Sequential(body, nn.Flatten(), head)
    for norm in norms:
        norm.reset_running_stats()
        norm.register_forward_hook(
            lambda norm, args, _: sizes.update({norm: args[0].numel() // args[0].shape[1]})
        )
    x, y, t = (torch.tensor(np.array(a)) for a in (images, labels, tests))
    optimizer = torch.optim.Adam(network.parameters())
    network.train()
    for number, rate in enumerate(rates):
        for norm in norms:
            norm.momentum = max(0.1, 1 / (number + 1))
        optimizer.param_groups[0]["lr"] = float(rate)
        optimizer.zero_grad()
        loss = ((network(x.permute(0, 3, 1, 2)) - y) ** 2).mean()
        loss.backward()
        optimizer.step()
    for norm in norms:
        norm.running_var *= (sizes[norm] - 1) / sizes[norm]
    network.eval()
    with torch.no_grad():
        return network(t.permute(0, 3, 1, 2)).numpy()
