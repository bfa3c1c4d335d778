"""Image sets: loading, preprocessing and streaming. Everything here is numpy until it is used."""

from ._adapt import adapt as adapt
from ._dataset import DataError as DataError, Dataset as Dataset
from ._folder import ImageFolder as ImageFolder
from ._hold_out import hold_out as hold_out
from ._images import AbstractImages as AbstractImages
from ._load import DATASETS as DATASETS, load as load
from ._open import open_records as open_records
from ._preprocess import (
    ZCA as ZCA,
    AbstractPreprocess as AbstractPreprocess,
    Identity as Identity,
    Standardize as Standardize,
    apply_in_chunks as apply_in_chunks,
    default_preprocess as default_preprocess,
    from_state as from_state,
    standardize as standardize,
    to_state as to_state,
    zca as zca,
)
from ._records import Records as Records, write_records as write_records
from ._resize import resize as resize
from ._stream import sample as sample, stream as stream

__all__ = [
    "DATASETS",
    "AbstractImages",
    "AbstractPreprocess",
    "DataError",
    "Dataset",
    "ImageFolder",
    "Records",
    "adapt",
    "default_preprocess",
    "hold_out",
    "load",
    "open_records",
    "sample",
    "standardize",
    "stream",
    "write_records",
    "zca",
]
