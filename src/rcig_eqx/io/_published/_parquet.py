"""Hugging Face `datasets`: a folder with one Parquet file, which `load_dataset` reads."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from ._layout import AbstractLayout, StoredSet, channels_last, check_version, needed

_OLDEST = "14.0.1"  # in earlier ones a file can run code: CVE-2023-47248


class HuggingFace(AbstractLayout):
    """A split `train` with the columns `image`, float32 `[c h w]`, and `label`, a class number or
    float32 `[classes]`. Pictures would round both."""

    def find(self, path: Path) -> list[Path]:
        return [path] if path.suffix == ".parquet" else sorted(path.glob("data/*.parquet"))

    def read(self, path: Path) -> list[StoredSet]:
        parquet = needed("pyarrow.parquet", "rcig-eqx[hf]")
        check_version("pyarrow", needed("pyarrow", "rcig-eqx[hf]"), _OLDEST)
        with parquet.ParquetFile(path) as file:
            groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
            numbers = sum(x.column(i).num_values for x in groups for i in range(x.num_columns))
            if numbers > 100 * path.stat().st_size:
                raise ValueError(f"its {numbers:,} numbers are more than it can hold")
            table = file.read(["image", "label"])
        images, labels = (_array(table.column(name)) for name in ("image", "label"))
        return [StoredSet(channels_last(images), labels)]

    def files(self, images, labels, learning_rate):
        hf = needed("datasets", "rcig-eqx[hf]")
        rows = hf.Sequence(hf.Value("float32"), labels.shape[-1])
        label = hf.Value("int64") if labels.ndim == 1 else rows
        features = hf.Features(image=hf.Array3D(images.shape[1:], "float32"), label=label)
        columns = {"image": list(images), "label": list(labels)}
        file = io.BytesIO()
        hf.Dataset.from_dict(columns, features=features).to_parquet(file)
        return {"data/train-00000-of-00001.parquet": file.getvalue()}


def _array(column: Any) -> np.ndarray:
    """A column of numbers, or of lists of them that are all of one shape."""
    rows = column.combine_chunks()
    rows = getattr(rows, "storage", rows)  # of the extension type of `datasets`
    shape = [len(rows)]
    while hasattr(rows, "value_lengths"):
        lengths = rows.value_lengths().unique().to_pylist()
        if len(lengths) != 1 or None in lengths:
            raise ValueError("its rows are of several shapes")
        shape, rows = [*shape, *lengths], rows.flatten()
    return rows.to_numpy(zero_copy_only=False).reshape(shape)
