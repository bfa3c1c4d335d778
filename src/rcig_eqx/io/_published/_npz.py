"""FRePo: NumPy's `.npz` with `image` and `label`."""

from pathlib import Path

from ...data._archives import opened_zip
from ...data._npy import read_npz
from ._layout import AbstractLayout, StoredSet, part


class FRePo(AbstractLayout):
    """FRePo: images `[n h w c]`, learned labels that start as one-hot − 1/C."""

    names = r".*\.npz"
    mirrored = True

    def read(self, path: Path) -> list[StoredSet]:
        with opened_zip(path) as archive:
            arrays = read_npz(archive, ("image", "label"))
        return [StoredSet(part(arrays, "image"), part(arrays, "label"))]
