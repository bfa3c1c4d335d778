"""SRe2L and RDED: folders of images by class."""

from pathlib import Path

from ...data import ImageFolder
from ._layout import AbstractLayout, StoredSet


class ImageFolders(AbstractLayout):
    """SRe2L and RDED: a folder of pictures per class, named or numbered, as `new003` or `00003`."""

    pixels = r".*"

    def find(self, path: Path) -> list[Path]:
        return [path] if path.is_dir() and any(x.is_dir() for x in path.iterdir()) else []

    def read(self, path: Path) -> list[StoredSet]:
        data = ImageFolder(path).read()
        return [StoredSet(data.images, data.labels, data.class_names)]
