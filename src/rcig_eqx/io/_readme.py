"""What a person reads of an exported folder: its README."""

import re
from typing import Any

from ._plot import VISIBLE, printable

ARRAYS, GRID = "arrays.safetensors", "grid.png"


def _escaped(text: str) -> str:
    """A name of a user's in Markdown: whatever could be markup as the entity that is shown so."""
    return re.sub(r"[^\w ,./()-]|_", lambda found: f"&#{ord(found[0])};", printable(text))


_READ = """import json
from read import load

card = json.load(open("card.json"))
images, labels = load(".")  # NumPy arrays, images [n h w c]"""
_TORCH = """from torch.utils.data import DataLoader
from dataset import Distilled

loader = DataLoader(Distilled("."), batch_size=256, shuffle=True)  # images [n c h w]"""


def _stored(card: dict[str, Any]) -> str:
    """The bits of a set, which a packed one is exported in."""
    known = card.get("storage") or card["distillation"]
    if "bits_per_class" not in known:  # of an earlier version
        return ""
    return (
        f"Images, labels and what decodes them take {known['bits_per_class']:,} bits per class, "
        f"{known['bits']:,} in all.\n\n"
    )


def readme(title: str, card: dict[str, Any]) -> str:
    """The text of a card's README, in Markdown."""
    images, training, size = card["images"], card["training"], card["bytes"]
    network, rate = training["network"], training["learning_rate"]
    flip = " and their mirror images" if images["flip"] else ""
    known = (f"{name} {network[name]}" for name in ("width", "depth") if name in network)
    network_parts = [network["name"], *known, network.get("activation", "as its authors say")]
    n, *shape = images["shape"]
    is_images = len(shape) == 3
    what, dtype = ("images", "uint8") if is_images else ("inputs", "float32")
    packed, form = "storage" in card, "[n h w c]" if is_images else images["shape"]
    arrays = f"`images` {form}, `labels` [n classes] and the arrays of\nthe preprocessing."
    if packed:
        arrays = (
            f"what images {form} and labels [n classes] are decoded from, and the arrays of the\n"
            "preprocessing. `read.py` decodes them, by NumPy alone."
        )
    stored = _stored(card)
    picture = "Pictures of them could not be drawn." if is_images else "They are no images."
    picture = f"![The distilled images]({GRID})" if card["pictures"] else picture
    return f"""# Distilled {_escaped(title)}

{n} synthetic {what} of {"×".join(map(str, shape))}, {images["per_class"]} of each of
{len(card["dataset"]["class_names"])} classes, to train fresh networks on.

{picture}

## What it is worth

{_accuracies(card["evaluation"])}

| part | bytes |
|---|---|
| images | {size["images"]:,} |
| labels | {size["labels"]:,} |
| preprocessing | {size["preprocess"]:,} |
| all | {size["total"]:,} |

{stored}That is as much as {size["real_images_of_as_many_bytes"]:,} real {what} take as {dtype},
with a byte of label each.

## How to train on it

`card.json` has all of this in exact terms, and the SHA-256 of every file; `{ARRAYS}` has
{arrays}

- **{what.capitalize()}** are preprocessed already. Those to test on must be, the same way,
  {"with pixels in [0, 1]" if is_images else "as raw values"}:
  {card["preprocess"]["forward"]}. The way back: {card["preprocess"]["inverse"]}.
- **Labels** are regression targets, not probabilities: no softmax, no one-hot.
- **Loss**: {_escaped(training["loss"])}, on the {what}{flip}.
- **Network**: {_escaped(", ".join(network_parts))}.
- **Optimizer**: Adam at a peak rate of {rate["peak"]:g}, {rate["warmup_steps"]} steps of linear
  warm-up, cosine decay to {rate["final"]:g}; {training["steps"]} steps in all, of up to
  {training["batch_size"]} {what}.

```python
{_READ}
```

In PyTorch, mirror images included where they are to be trained on:

```python
{_TORCH}
```
{_gallery(card["pictures"], shape[-1])}"""


def _gallery(pictures: dict[str, Any] | None, channels: int) -> str:
    """The pictures of each class, if there are any."""
    if pictures is None:
        return ""
    mean = "" if channels in VISIBLE else f" Pictures are of the mean of {channels} channels."
    names = {_escaped(name): file for name, file in pictures["classes"].items()}
    rows = "\n".join(f"| {name} | ![{name}]({file}) |" for name, file in names.items())
    return f"""
## Images

An image that leaves [0, 1] is scaled into it above, and clipped in the pictures of classes; the
arrays are as they are.{mean}

| class | images |
|---|---|
{rows}
"""


def _accuracies(evaluation: dict[str, Any] | None) -> str:
    if evaluation is None:
        return "Not measured."
    tested, base = evaluation["tested_on"], evaluation["baseline"]
    lines = ["| trained on | test accuracy | each network |", "|---|---|---|"]
    for name, part in (("this set", evaluation), ("as many random real images", base)):
        if part:
            each = ", ".join(f"{x:.2%}" for x in part["accuracies"])
            lines.append(f"| {name} | {part['mean']:.2%} ± {part['std']:.2%} | {each} |")
    on = "test images"
    if tested:
        on = f"{tested['images']:,} test images of {_escaped(str(tested['dataset']))}"
    count = len(evaluation["accuracies"])
    lines.append(f"\nMean ± standard deviation over {count} fresh networks, on {on}.")
    return "\n".join(lines)
