"""A distilled set for PyTorch, or for NumPy alone where PyTorch is not installed.

from dataset import Distilled

loader = torch.utils.data.DataLoader(Distilled("."), batch_size=256, shuffle=True)
"""

import json
from pathlib import Path

import numpy as np
from read import load

try:
    from torch import from_numpy as tensor
    from torch.utils.data import Dataset
except ImportError:  # its items are NumPy arrays then
    Dataset, tensor = object, np.asarray


class Distilled(Dataset):
    """Pairs of an input, images [c h w] as networks of PyTorch take them, and its label [classes].

    Images are preprocessed; labels are targets of a mean-squared error. Mirror images come along if
    the card says that they are to be trained on, or as `mirrored` says. `images` [n c h w] and
    `labels` [n classes] are all of them.
    """

    def __init__(self, folder=".", mirrored=None):
        card = json.loads(Path(folder, "card.json").read_text(encoding="utf-8"))["images"]
        images, labels = load(folder)
        if card["flip"] if mirrored is None else mirrored:
            images, labels = np.concatenate([images, images[:, :, ::-1]]), np.tile(labels, (2, 1))
        if images.ndim == 4:
            images = images.transpose(0, 3, 1, 2)
        self.images, self.labels = (tensor(np.ascontiguousarray(x)) for x in (images, labels))

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], self.labels[index]
