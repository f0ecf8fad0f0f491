"""Stock losses and miners of pytorch-metric-learning without tuples: the same numbers at a fraction of the cost.

Those of PML 2: beside PML 3, whose losses compute other numbers, `accelerate` says so.
"""

from typing import TYPE_CHECKING, Any

from pml_ext import _pml

if TYPE_CHECKING or not _pml.HAS_TERMS:
    from pml_ext.stock.loss import NotAcceleratedError, as_stock
    from pml_ext.stock.twins import accelerate
else:
    __path__ = []  # its modules build on classes of PML 2: beside PML 3 there are none

    class NotAcceleratedError(ValueError):
        """What can only be computed by PML's own code."""

    def accelerate(*items: Any, **options: Any) -> Any:
        """Refuse: these are the losses of PML 3."""
        raise NotAcceleratedError(
            "accelerate computes what the losses and miners of PML 2 compute, and those of PML 3 differ: "
            "pml_ext.losses has losses without tuples"
        )

    def as_stock(module: Any) -> None:
        """Nothing is accelerated."""


__all__ = ["NotAcceleratedError", "accelerate", "as_stock"]
