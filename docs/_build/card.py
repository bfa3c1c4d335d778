"""Draws docs/images/card.png, what other sites show beside a link: python docs/_build/card.py."""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle

IMAGES = Path(__file__).parents[1] / "images"

figure = plt.figure(figsize=(12, 6.3), facecolor="#3f51b5")
axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 120), ylim=(0, 63))
axes.axis("off")
for i in range(4):
    for j in range(4 - i):
        box = Rectangle((8 + 6.5 * j, 52 - 6.5 * i), 5, 5, color="white", alpha=0.5, linewidth=0)
        axes.add_patch(box)
axes.add_patch(Rectangle((22, 30), 12, 12, color="white", linewidth=0))
axes.text(44, 44, "rcig_eqx", color="white", size=64, weight="bold", va="center")
axes.text(44, 33, "Dataset distillation with exact\nimplicit gradients, in JAX", color="white", size=30,
          va="center", linespacing=1.4)  # fmt: skip
picture = plt.imread(IMAGES / "fashion_mnist_small-1ipc.png")
inset = figure.add_axes((44 / 120, 3 / 63, 70 / 120, 21 / 63), anchor="W")
inset.imshow(picture)
inset.axis("off")
figure.savefig(IMAGES / "card.png", dpi=100)
