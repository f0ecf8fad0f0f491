"""The methods of the literature that train more than an embedding, as `pml_ext.catalog` has those that are losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from pml_ext.trainers.assembly import Assembled, assembled

if TYPE_CHECKING:
    from pml_ext.trainers.hardness_aware import HardnessAwareTrainer


@dataclass(frozen=True)
class Method:
    """A named method that trains a generator and a classifier beside the embedding.

    Args:
        variant: of `hardness_aware_trainer`.
        source: where the method comes from.
        args: the arguments in which it differs from the defaults of `hardness_aware_trainer`.
    """

    variant: str
    source: str
    args: Mapping[str, Any] = field(default_factory=dict)

    def trainer(
        self, trunk: nn.Module, embedder: nn.Module, dataset: Any, num_classes: int, **kwargs: Any
    ) -> HardnessAwareTrainer:
        """Assemble the trainer of PML 2; keyword arguments of `hardness_aware_trainer` override those of the method."""
        from pml_ext.trainers.hardness_aware import hardness_aware_trainer

        return hardness_aware_trainer(self.variant, trunk, embedder, dataset, num_classes, **(dict(self.args) | kwargs))

    def assembled(
        self, trunk: nn.Module, embedder: nn.Module, data: Tensor, num_classes: int, **kwargs: Any
    ) -> Assembled:
        """Assemble the parts for any training loop; keyword arguments of `assembled` override those of the method."""
        rates = {name: value for name, value in self.args.items() if name.endswith("_rate")}
        parts = assembled(self.variant, trunk, embedder, data, num_classes, **(rates | kwargs))
        rest = {name: value for name, value in self.args.items() if name not in rates}
        return replace(parts, args={**parts.args, **rest})


_source = "Zheng et al. 2019, arXiv 1903.05503"

methods: Mapping[str, Method] = MappingProxyType(
    {
        "HDML-Triplet": Method("triplet", _source),
        "HDML-NPair": Method("n_pair", _source),
        "HDML-Triplet-real": Method("triplet", f"{_source}: its J(T) alone", {"synthesis": False}),
        "HDML-NPair-real": Method("n_pair", f"{_source}: its J(T) alone", {"synthesis": False}),
        # The paper's numbers are for features of 1024 dimensions, 98 classes and a network trained before. In these,
        # alpha is near the metric loss, beta far below the J_gen of a generator at chance, and the classifier keeps up
        # with a network trained from scratch. See benchmarks/results/hdml.md.
        "HDML-Triplet-rescaled": Method(
            "triplet",
            f"{_source}, for a small network from scratch",
            {"alpha": 20, "beta": 1e3, "classifier_learning_rate": 1e-2},
        ),
        "HDML-NPair-rescaled": Method(
            "n_pair",
            f"{_source}, for a small network from scratch",
            {"alpha": 1, "beta": 1e3, "classifier_learning_rate": 1e-2},
        ),
        # And J_soft is of the size of J_recon.
        "HDML-NPair-balanced": Method(
            "n_pair",
            f"{_source}, for a small network from scratch",
            {
                "alpha": 1,
                "beta": 100,
                "soft_factor": 100,
                "generator_learning_rate": 1e-3,
                "classifier_learning_rate": 1e-2,
            },
        ),
    }
)
