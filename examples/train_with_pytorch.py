"""Train PyTorch networks on an exported distilled set, and test them on raw images.

    pip install torch safetensors numpy
    python train_with_pytorch.py FOLDER TEST.npz [NETWORKS]

FOLDER is what rcig_eqx's `export` wrote; TEST.npz has `images`, uint8 [n h w c], and `labels` [n]:
`np.savez("test.npz", images=images, labels=labels)` writes one.
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn


def preprocess(pixels, arrays, block=None):
    """Raw images as the distilled ones are; `block`, if any, is in the card's preprocess."""
    x = torch.tensor(pixels).float() / 255
    if "preprocess.mean" in arrays:
        x = (x - arrays["preprocess.mean"]) / arrays["preprocess.std"]
    if "preprocess.center" in arrays:
        U, e = arrays["preprocess.eigenvectors"], arrays["preprocess.eigenvalues"]
        n, h, w, c = x.shape
        a, b = (block, block) if block else (h, w)  # one tile, or many
        tiles = x.reshape(n, h // a, a, w // b, b, c).transpose(2, 3)
        z = tiles.reshape(-1, a * b * c) - arrays["preprocess.center"]
        z = (z @ U * e**-0.5 @ U.T).reshape(tiles.shape)
        x = z.transpose(2, 3).reshape(n, h, w, c)
    return x.permute(0, 3, 1, 2)


def fresh_network(net, images, classes):
    assert (net["name"], net["activation"]) == ("ConvNet", "relu"), net
    assert (net["normalization"], net.get("growth", 2)) == ("none", 2), net
    layers, channels = [], images.shape[1]
    for i, padding in enumerate(net["padding"]):
        layers += [nn.Conv2d(channels, net["width"] * 2**i, 3, padding=padding), nn.ReLU()]
        layers += [nn.AvgPool2d(2)]
        channels = net["width"] * 2**i
    body = nn.Sequential(*layers, nn.Flatten())
    network = nn.Sequential(*body, nn.Linear(body(images[:1]).shape[1], classes))
    for p in network.parameters():
        s = p[0].numel() ** -0.5 / 0.87962566
        nn.init.trunc_normal_(p, std=s, a=-2 * s, b=2 * s) if p.ndim > 1 else nn.init.zeros_(p)
    return network


def train(network, images, labels, recipe):
    steps, rate = recipe["steps"], recipe["learning_rate"]
    peak, warmup, final = rate["peak"], rate["warmup_steps"], rate["final"]
    adam = torch.optim.Adam(network.parameters())
    for t in range(steps):
        cosine = math.cos(math.pi * (t - warmup) / (steps - warmup))
        decayed = final + (peak - final) * (1 + cosine) / 2
        adam.param_groups[0]["lr"] = peak * t / warmup if t < warmup else decayed
        batch = torch.randperm(len(images))[: recipe["batch_size"]]
        adam.zero_grad()
        ((network(images[batch]) - labels[batch]) ** 2).mean().backward()
        adam.step()


def main(folder, test, networks=1):
    card, test = json.loads(Path(folder, "card.json").read_text()), np.load(test)
    arrays, recipe = load_file(Path(folder, "arrays.safetensors")), card["training"]
    assert "(output - label)^2" in recipe["loss"], recipe["loss"]
    images, labels = arrays["images"].permute(0, 3, 1, 2), arrays["labels"]
    if card["images"]["flip"]:
        images, labels = torch.cat([images, images.flip(3)]), torch.cat([labels, labels])
    accuracies = []
    for seed in range(int(networks)):
        torch.manual_seed(seed)
        network = fresh_network(recipe["network"], images, labels.shape[1])
        train(network, images, labels, recipe)
        with torch.no_grad():
            parts = np.array_split(test["images"], len(test["labels"]) // 500 + 1)
            block = card["preprocess"].get("block")
            guesses = torch.cat([network(preprocess(x, arrays, block)).argmax(1) for x in parts])
        accuracies.append(np.mean(guesses.numpy() == test["labels"]))
        print(f"network {seed}: {accuracies[-1]:.4f}", flush=True)
    stated = card["evaluation"] and round(card["evaluation"]["mean"], 4)
    print(f"mean {np.mean(accuracies):.4f}; the card states {stated}")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(*sys.argv[1:])
