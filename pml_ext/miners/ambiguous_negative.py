"""Ambiguous sampling: negatives drawn near the score of the positive, neither far above nor far below."""

from functools import partial
from typing import Any, final, get_args

import torch
from pytorch_metric_learning.distances import CosineSimilarity
from torch import Tensor
from typing_extensions import Unpack

from pml_ext import arguments
from pml_ext.hyperparameters import SeededMinerArguments
from pml_ext.masked import has_any, of_rows
from pml_ext.miners.base import PairMiner, in_row_blocks
from pml_ext.miners.positive_aware import Reference, reference_score
from pml_ext.sampling import sample
from pml_ext.seeded import Seeded


def ambiguous_negative(
    sim: Tensor,
    pos: Tensor,
    neg: Tensor,
    *,
    k: int,
    a: float,
    b: float,
    reference: Reference,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """All positives, and k drawn negatives: sim, pos, neg [.., n, m] -> narrowed pos, neg."""
    has_pos = has_any(pos)
    middle = torch.where(has_pos, reference_score(sim, pos, reference), 0.0) + b
    neg = of_rows(neg, has_pos)
    # What is no negative may be of any score.
    log_weights = -a * torch.where(neg, sim - middle, 0.0).square()
    return pos, sample(log_weights, neg, torch.full_like(has_pos, k, dtype=torch.int64), generator)


@final
class AmbiguousNegativeMiner(Seeded, PairMiner):
    r"""Samples negatives about as similar as the positives, and keeps all positives.

    Negatives are drawn one after another, without replacement, with probability proportional to

        w_in = exp(-a (s_in - r_i - b)^2),  r_i = max_{p in P_i} s_ip

    Negatives that are much nearer may be unlabeled positives, and far negatives have little to teach.

    Args:
        k: how many to draw for each anchor, at least 1 (all if it has fewer).
        a: how strongly negatives near the target score are preferred, at least 0; for cosines 1 is nearly uniform.
            Default 10.
        b: the score of the most likely negatives minus r_i, a difference of two scores. Default 0.
        reference: which positive gives r_i: the nearest ("max", default) or the farthest ("min"), or "mean" for the
            mean of their scores.
        kwargs: `seed` as in `Seeded`; those of `PairMiner`.

    Shape:
        embeddings [n, d], labels [n] -> (anchors, positives, anchors, negatives).

    Defaults:
        CosineSimilarity, torch's global generator.

    Source:
        Zhou et al. 2022, SimANS, arXiv 2210.11773, where a is 1 and scores are inner products. An anchor without
        positives has no r_i, and keeps no negatives.

    Raises:
        TypeError, ValueError: an argument of the wrong type, not finite or out of range, an unknown reference.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> anchors, positives, others, negatives = AmbiguousNegativeMiner(seed=0)(embeddings, labels)
        >>> others
        tensor([0, 1, 2, 3])
    """

    def __init__(
        self,
        *,
        k: int = 1,
        a: float = 10,
        b: float = 0,
        reference: Reference = "max",
        **kwargs: Unpack[SeededMinerArguments],
    ) -> None:
        super().__init__(**kwargs)
        if reference not in get_args(Reference):
            raise ValueError(f"reference must be 'max', 'min' or 'mean', got {reference!r}")
        self.record_hyperparameters(
            k=arguments.count("k", k),
            a=arguments.non_negative("a", a),
            b=arguments.finite("b", b),
            reference=reference,
        )

    def get_default_distance(self) -> Any:
        """Cosine similarity."""
        return CosineSimilarity()

    def select(self, sim: Tensor, pos: Tensor, neg: Tensor) -> tuple[Tensor, Tensor]:
        """All positives, and the drawn negatives."""
        values = self.hyperparameters() | {"generator": self.generator(sim.device)}
        return in_row_blocks(partial(ambiguous_negative, **values), sim, pos, neg)
