"""Stock losses and miners of pytorch-metric-learning without tuples: the same numbers at a fraction of the cost."""

from pml_ext import _pml

if _pml.HAS_TERMS:
    raise ImportError("pml_ext.stock computes what the losses and miners of PML 2 compute, and those of PML 3 differ")

from pml_ext.stock.loss import NotAcceleratedError
from pml_ext.stock.twins import accelerate

__all__ = ["NotAcceleratedError", "accelerate"]
