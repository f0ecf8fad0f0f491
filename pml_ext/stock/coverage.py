"""What `accelerate` does with each loss and miner of PML 2, and why."""

from __future__ import annotations

import inspect
from types import ModuleType

from pytorch_metric_learning import losses, miners

from pml_ext import _pml
from pml_ext.stock.forms import FORMS
from pml_ext.stock.miners import MINERS

CONTAINERS = (losses.CrossBatchMemory, losses.MultipleLosses, losses.SelfSupervisedLoss)

# PML's result is not what its documentation says: nobody needs it faster.
REFUSED: dict[type, str] = {
    losses.ThresholdConsistentMarginLoss: "it looks up references among the anchors; beside another loss it stays"
    " PML's own",
}
for _kind in _pml.losses_named("SmoothAPLoss"):  # from PML 2.9 on
    REFUSED[_kind] = (
        "it takes consecutive rows as a class, right only for a sorted batch with as many classes as samples of each; "
        "use pml_ext.losses.SmoothAPLoss"
    )
_COMPARES_CENTERS = "it compares samples with proxies or class weights and forms no tuples"
_FORMS_NONE = "it forms no tuples"
PASSED_THROUGH: dict[type, str] = {
    losses.AngularLoss: "no form without tuples is implemented",
    losses.ArcFaceLoss: _COMPARES_CENTERS,
    losses.CosFaceLoss: _COMPARES_CENTERS,
    losses.DynamicSoftMarginLoss: "it keeps the graph of the previous step, so that its second backward pass fails",
    losses.InstanceLoss: _FORMS_NONE,
    losses.LargeMarginSoftmaxLoss: _COMPARES_CENTERS,
    losses.ManifoldLoss: _COMPARES_CENTERS,
    losses.NPairsLoss: "it uses one pair of each class, the first in the list of a miner",
    losses.NormalizedSoftmaxLoss: _COMPARES_CENTERS,
    losses.P2SGradLoss: _COMPARES_CENTERS,
    losses.PNPLoss: "no form without tuples is implemented; pml_ext.losses.PNPLoss costs a few matrix products",
    losses.ProxyAnchorLoss: _COMPARES_CENTERS,
    losses.ProxyNCALoss: _COMPARES_CENTERS,
    losses.SoftTripleLoss: _COMPARES_CENTERS,
    losses.SphereFaceLoss: _COMPARES_CENTERS,
    losses.SubCenterArcFaceLoss: _COMPARES_CENTERS,
    losses.VICRegLoss: _FORMS_NONE,
    miners.AngularMiner: "no form without tuples is implemented",
    miners.DistanceWeightedMiner: "its triplets are few, and drawn at random",
    miners.EmbeddingsAlreadyPackagedAsTriplets: "its triplets are few",
    miners.UniformHistogramMiner: "its pairs are few, and drawn at random",
}


def coverage() -> dict[str, tuple[str, str]]:
    """For each loss and miner of PML what `accelerate` does, and why if it is not accelerated."""
    found: dict[str, tuple[str, str]] = {}
    for kind in (*_classes(losses), *_classes(miners)):
        if kind in FORMS or kind in MINERS:
            found[kind.__name__] = "accelerated", ""
        elif kind in CONTAINERS:
            found[kind.__name__] = "accelerated", "the losses and miners in it are"
        elif kind in REFUSED:
            found[kind.__name__] = "refused", REFUSED[kind]
        else:
            found[kind.__name__] = "passed through", PASSED_THROUGH[kind]
    return found


def statement() -> str:
    """The same as a table in Markdown."""
    lines = ["| class of PML | what happens | why |", "|---|---|---|"]
    lines += [f"| {name} | {state} | {why} |" for name, (state, why) in coverage().items()]
    return "\n".join(lines)


def _classes(module: ModuleType) -> list[type]:
    bases = ("BaseLossWrapper", "BaseMetricLossFunction", "BaseMiner", "GenericPairLoss")
    found = inspect.getmembers(module, inspect.isclass)
    return [kind for name, kind in found if name not in bases and not name.endswith("Mixin")]
