"""Image sets: loading, preprocessing and streaming. Everything here is numpy until it is used."""

from ._dataset import DataError as DataError
from ._dataset import Dataset as Dataset
from ._folder import ImageFolder as ImageFolder
from ._load import load as load
from ._preprocess import (
    ZCA as ZCA,
)
from ._preprocess import (
    AbstractPreprocess as AbstractPreprocess,
)
from ._preprocess import (
    Identity as Identity,
)
from ._preprocess import (
    Standardize as Standardize,
)
from ._preprocess import (
    apply_in_chunks as apply_in_chunks,
)
from ._preprocess import (
    default_preprocess as default_preprocess,
)
from ._preprocess import (
    from_state as from_state,
)
from ._preprocess import (
    standardize as standardize,
)
from ._preprocess import (
    to_state as to_state,
)
from ._preprocess import (
    zca as zca,
)
from ._stream import stream as stream
