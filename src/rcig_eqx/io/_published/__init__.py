"""Distilled sets as other projects publish them: one file of this package per family of layouts."""

from ..._registry import Registry
from ._bptt import RatBPTT
from ._flax import RCIG
from ._folders import ImageFolders
from ._layout import AbstractLayout as AbstractLayout, StoredSet as StoredSet
from ._npz import FRePo
from ._parquet import HuggingFace
from ._pytorch import DC, MTT, NCFM, DDRanking

LAYOUTS: Registry[AbstractLayout] = Registry(
    "layouts",
    mtt=MTT,
    dd_ranking=DDRanking,
    ncfm=NCFM,
    dc=DC,
    rat_bptt=RatBPTT,
    frepo=FRePo,
    rcig=RCIG,
    hf=HuggingFace,
    image_folders=ImageFolders,
)
"""Layouts of published sets by name, in the order in which they are looked for."""
