"""Data sets: folders and lists of photographs, the sets of the literature, vectors, and two sets that need no files.

`open(source)` reads any of them into a `Samples`. `Glyphs` and `Digits` are made from data that matplotlib and
scikit-learn contain; `InShop` is a dataset like PML's, for a local copy of DeepFashion's In-Shop set.
"""

from pml_ext.datasets.digits import Digits
from pml_ext.datasets.glyphs import Glyphs
from pml_ext.datasets.in_shop import InShop
from pml_ext.datasets.samples import DataError, Samples
from pml_ext.datasets.sources import DATASETS, check, open
from pml_ext.datasets.warp import RandomWarp

__all__ = ["DATASETS", "DataError", "Digits", "Glyphs", "InShop", "RandomWarp", "Samples", "check", "open"]
