"""Image sets for zero-shot retrieval: two that need no download, and the one that PML lacks.

`Glyphs` and `Digits` come with matplotlib and scikit-learn. `InShop` reads a copy of DeepFashion's In-Shop set; CUB,
Cars196, Stanford Online Products and iNaturalist are in `pytorch_metric_learning.datasets`.
"""

from pml_ext.datasets.digits import Digits
from pml_ext.datasets.glyphs import Glyphs
from pml_ext.datasets.in_shop import InShop
from pml_ext.datasets.warp import RandomWarp

DATASETS: dict[str, type[Glyphs] | type[Digits]] = {"glyphs": Glyphs, "digits": Digits}
"""The sets that need no files, by name: `DATASETS["glyphs"]("train")`."""

__all__ = ["DATASETS", "Digits", "Glyphs", "InShop", "RandomWarp"]
