"""Train networks on an exported distilled set with NumPy alone, and test them on raw images.

    python train_with_numpy.py FOLDER TEST.npz [NETWORKS]

FOLDER is what rcig_eqx's `export` wrote; TEST.npz has `images`, uint8 [n h w c], and `labels` [n]:
`np.savez("test.npz", images=images, labels=labels)` writes one.
"""

import json
import sys
from pathlib import Path

import numpy as np


def read_safetensors(path):
    """The arrays of a file whose values are all float32, as an export's are."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    arrays = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        values = np.frombuffer(content[start + begin : start + end], "<f4")
        arrays[name] = values.reshape(entry["shape"])
    return arrays


def preprocess(pixels, arrays, block=None):
    """Raw images as the distilled ones are; `block`, if any, is in the card's preprocess."""
    x = pixels.astype(np.float32) / 255
    if "preprocess.mean" in arrays:
        x = (x - arrays["preprocess.mean"]) / arrays["preprocess.std"]
    if "preprocess.center" in arrays:
        U, e = arrays["preprocess.eigenvectors"], arrays["preprocess.eigenvalues"]
        n, h, w, c = x.shape
        a, b = (block, block) if block else (h, w)  # one tile, or many
        tiles = x.reshape(n, h // a, a, w // b, b, c).swapaxes(2, 3)
        z = tiles.reshape(-1, a * b * c) - arrays["preprocess.center"]
        z = (z @ U * e**-0.5 @ U.T).reshape(tiles.shape)
        x = z.swapaxes(2, 3).reshape(x.shape)
    return x


def fresh_network(net, height, width, channels, classes, rng):
    """Kernels [9 * inputs, outputs] and biases, layer after layer, the head last."""
    parameters = []

    def add(fan_in, outputs):
        z = rng.standard_normal(2 * fan_in * outputs, np.float32)
        z = z[abs(z) < 2][: fan_in * outputs].reshape(fan_in, outputs)
        parameters.extend([z * np.float32(fan_in**-0.5 / 0.87962566), np.zeros(outputs, "f4")])

    for i, pad in enumerate(net["padding"]):
        add(9 * channels, net["width"] * 2**i)
        channels = net["width"] * 2**i
        height, width = (height + 2 * pad - 2) // 2, (width + 2 * pad - 2) // 2
    add(height * width * channels, classes)
    return parameters


def forward(net, parameters, x):
    """The outputs, and what the backward pass needs."""
    saved = []
    for i, pad in enumerate(net["padding"]):
        W, b = parameters[2 * i : 2 * i + 2]
        x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        n, h, w, c = x.shape
        h, w = h - 2, w - 2
        patches = [x[:, a : a + h, d : d + w] for a in range(3) for d in range(3)]
        patches = np.concatenate(patches, axis=3).reshape(-1, 9 * c)
        y = (patches @ W + b).reshape(n, h, w, -1)
        saved.append((patches, y > 0, c))
        y = np.maximum(y, 0)[:, : h // 2 * 2, : w // 2 * 2]
        x = y.reshape(n, h // 2, 2, w // 2, 2, -1).mean((2, 4))
    features = x.reshape(len(x), -1)
    return features @ parameters[-2] + parameters[-1], (saved, features, x.shape)


def backward(net, parameters, saved, gradient):
    """Gradients of the parameters, given that of the outputs."""
    saved, features, shape = saved
    gradients = [gradient.sum(0), features.T @ gradient]
    gradient = (gradient @ parameters[-2].T).reshape(shape)
    for i in reversed(range(len(saved))):
        patches, active, c = saved[i]
        n, h, w, o = active.shape
        dy = np.zeros(active.shape, np.float32)
        dy[:, : h // 2 * 2, : w // 2 * 2] = gradient.repeat(2, axis=1).repeat(2, axis=2) / 4
        dy = (dy * active).reshape(-1, o)
        gradients += [dy.sum(0), patches.T @ dy]
        if i:
            pad, dx = net["padding"][i], np.zeros((n, h + 2, w + 2, c), np.float32)
            parts = np.split((dy @ parameters[2 * i].T).reshape(n, h, w, -1), 9, axis=3)
            for k, part in enumerate(parts):
                dx[:, k // 3 : k // 3 + h, k % 3 : k % 3 + w] += part
            gradient = dx[:, pad : h + 2 - pad, pad : w + 2 - pad]
    return gradients[::-1]


def rate(recipe, t):
    peak, warmup, final = (recipe["learning_rate"][k] for k in ("peak", "warmup_steps", "final"))
    if t < warmup:
        return peak * t / warmup
    cosine = np.cos(np.pi * (t - warmup) / (recipe["steps"] - warmup))
    return final + (peak - final) * (1 + cosine) / 2


def train(recipe, parameters, images, labels, rng):
    """Adam on the mean squared error, in place."""
    m, v = ([np.zeros_like(p) for p in parameters] for _ in range(2))
    for t in range(recipe["steps"]):
        batch = rng.permutation(len(images))[: recipe["batch_size"]]
        outputs, saved = forward(recipe["network"], parameters, images[batch])
        error = 2 * (outputs - labels[batch]) / outputs.size
        for i, g in enumerate(backward(recipe["network"], parameters, saved, error)):
            m[i] = 0.9 * m[i] + 0.1 * g
            v[i] = 0.999 * v[i] + 0.001 * g * g
            step = m[i] / (1 - 0.9 ** (t + 1)) / (np.sqrt(v[i] / (1 - 0.999 ** (t + 1))) + 1e-8)
            parameters[i] -= np.float32(rate(recipe, t)) * step


def main(folder, test, networks=1):
    card, test = json.loads(Path(folder, "card.json").read_text()), np.load(test)
    arrays = read_safetensors(Path(folder, "arrays.safetensors"))
    images, labels = arrays["images"], arrays["labels"]
    if card["images"]["flip"]:
        images = np.concatenate([images, images[:, :, ::-1]])
        labels = np.concatenate([labels, labels])
    net = card["training"]["network"]
    assert (net["name"], net["activation"]) == ("ConvNet", "relu"), net
    assert (net["normalization"], net.get("growth", 2)) == ("none", 2), net
    assert "(output - label)^2" in card["training"]["loss"], card["training"]["loss"]
    accuracies = []
    for seed in range(int(networks)):
        rng = np.random.default_rng(seed)
        parameters = fresh_network(net, *images.shape[1:], labels.shape[1], rng)
        train(card["training"], parameters, images, labels, rng)
        hits = []
        for i in range(0, len(test["images"]), 250):
            block = card["preprocess"].get("block")
            x = preprocess(test["images"][i : i + 250], arrays, block)
            guesses = forward(net, parameters, x)[0].argmax(1)
            hits.extend(guesses == test["labels"][i : i + 250])
        accuracies.append(np.mean(hits))
        print(f"network {seed}: {accuracies[-1]:.4f}", flush=True)
    stated = card["evaluation"] and round(card["evaluation"]["mean"], 4)
    print(f"mean {np.mean(accuracies):.4f}; the card states {stated}")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(*sys.argv[1:])
