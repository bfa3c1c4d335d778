"""SRe2L and RDED: folders of images by class."""

import re
from pathlib import Path

import numpy as np

from ...data import ImageFolder
from ._layout import AbstractLayout, StoredSet


class ImageFolders(AbstractLayout):
    """SRe2L and RDED: a folder of pictures per class, named or numbered, as `new003` or `00003`."""

    pixels = True

    def find(self, path: Path) -> list[Path]:
        return [path] if path.is_dir() and any(x.is_dir() for x in path.iterdir()) else []

    def read(self, path: Path) -> list[StoredSet]:
        data = ImageFolder(path).read()
        found = [re.fullmatch(r"(?:new|class)?_?(\d{1,9})", name) for name in data.class_names]
        numbers = [int(match[1]) for match in found if match]
        if sorted(numbers) != list(range(data.num_classes)):
            return [StoredSet(data.images, data.labels, data.class_names)]
        return [StoredSet(data.images, np.array(numbers)[data.labels])]
