"""Methods that compare the distributions of all positive and all negative pairs."""

from pml_ext.catalog.registry import recipe
from pml_ext.losses import HistogramLoss, MeanGapLoss

recipe("GaussianMetric", source="DM18 (nothing in it is Gaussian)")(MeanGapLoss)
recipe("Histogram", source="Ustinova, Lempitsky 2016, arXiv 1611.00822")(HistogramLoss)
