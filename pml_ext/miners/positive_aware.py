"""Negatives that are not as near as the positives: possible unlabeled positives are left out."""

from functools import partial
from typing import Any, Literal, final, get_args

import torch
from pytorch_metric_learning.distances import CosineSimilarity
from torch import Tensor
from typing_extensions import Unpack

from pml_ext import _pml, arguments
from pml_ext.hyperparameters import MinerArguments
from pml_ext.masked import count, has_any, masked_max, masked_mean, masked_min, nearest, of_rows
from pml_ext.miners.base import PairMiner, in_row_blocks

Reference = Literal["max", "min", "mean"]


def ceilings(
    reference: Tensor,
    *,
    absolute_margin: float | None = None,
    relative_margin: float | None = None,
    max_score: float | None = None,
) -> dict[str, Tensor]:
    """The upper limits in use, by name: r - absolute, r - relative |r|, and a constant; of the shape of r.

    A negative passes if its score lies below all of them. Because of the absolute value, the margin lowers the limit
    where r is negative, too.
    """
    found = {}
    if absolute_margin is not None:
        found["absolute_margin"] = reference - absolute_margin
    if relative_margin is not None:
        found["relative_margin"] = reference - relative_margin * reference.abs()
    if max_score is not None:
        found["max_score"] = torch.full_like(reference, max_score)
    return found


def reference_score(sim: Tensor, pos: Tensor, reference: Reference) -> Tensor:
    """The score r of an anchor's positives, from which margins are subtracted: sim, pos [.., n, m] -> [.., n, 1]."""
    if reference == "mean":
        return masked_mean(sim, pos).unsqueeze(-1)
    return masked_max(sim, pos) if reference == "max" else masked_min(sim, pos)


def positive_aware(
    sim: Tensor,
    pos: Tensor,
    neg: Tensor,
    *,
    absolute_margin: float | None,
    relative_margin: float | None,
    max_score: float | None,
    min_score: float | None,
    range_min: int,
    range_max: int | None,
    k: int | None,
    reference: Reference,
) -> tuple[Tensor, Tensor]:
    """The negatives below the limits, and all positives of their anchors: sim, pos, neg [.., n, m] -> both."""
    levels = ceilings(
        reference_score(sim, pos, reference),
        absolute_margin=absolute_margin,
        relative_margin=relative_margin,
        max_score=max_score,
    )
    # Ranks count all negatives, whatever the filters let pass.
    kept = neg if range_max is None else nearest(sim, neg, range_max)
    if range_min:
        kept = kept & ~nearest(sim, neg, range_min)
    for level in levels.values():
        kept = kept & (sim < level)
    if min_score is not None:
        kept = kept & (sim >= min_score)
    kept = of_rows(kept, has_any(pos))
    if k is not None:
        kept = nearest(sim, kept, k)
    return of_rows(pos, has_any(kept)), kept


@final
class PositiveAwareMiner(PairMiner):
    r"""Keeps the negatives that are not as similar as the positives, by a margin, and all positives.

        N'_i = the k nearest of { n in N_i : range_min <= rank_i(n) < range_max, min_score <= s_in < tau_i }
        tau_i = min(r_i - absolute_margin, r_i - relative_margin |r_i|, max_score),  r_i = max_{p in P_i} s_ip

    A negative as near as a positive may be an unlabeled positive. With clean labels, however, it is the very error to
    learn from, and this miner does harm: with `reference="min"` and an absolute margin it keeps exactly the negatives
    that multi-similarity mining, and `HardNegativePairMiner`, leave out. Where classes were split at random it was no
    gain either (`docs/mining.md`). An anchor without kept negatives drops out, with its positives.

    Args:
        absolute_margin: how much less similar than r_i a negative must be, at least 0; None (default) for no such
            margin.
        relative_margin: the same as a share of |r_i|, at least 0, default 0.05; None for none.
        max_score: an upper limit on the similarity of a negative, as a level of the distance (with a distance, the
            smallest allowed one); None (default) for none.
        min_score: a lower limit on the similarity of a negative, likewise; None (default) for none.
        range_min: the rank of the first negative to consider, at least 0, default 0. Rank 0 is the nearest negative;
            ranks are counted before all filters.
        range_max: the rank before which negatives are considered; None (default) for no limit.
        k: the largest number of negatives to keep, the nearest ones; None (default) for all. `CappedMiner` keeps random
            ones.
        reference: which positive gives r_i: the nearest ("max", default) or the farthest ("min"), or "mean" for the
            mean of their scores. With one positive per anchor they are the same.
        kwargs: those of `PairMiner`. With `collect_stats` the attribute `share_dropped` is the share of the negatives,
            of anchors with a positive, that were left out.

    Shape:
        embeddings [n, d], labels [n] -> (anchors, positives, anchors, negatives).

    Defaults:
        CosineSimilarity. With a distance, the relative margin is a share of the distance of the positive.

    Source:
        de Souza Moreira et al. 2024, NV-Retriever, arXiv 2407.15831, where anchors have one positive; names as in
        sentence-transformers. There the relative margin raises the limit where r_i is negative, the range of ranks is
        applied after the filters, and a negative with a score equal to the limit is kept.

    Raises:
        TypeError, ValueError: a margin that is not a number or below 0, a k or a range that is not an integer, a
            range_max that is not above range_min, an unknown reference.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> anchors, positives, others, negatives = PositiveAwareMiner()(embeddings, labels)
        >>> others, negatives
        (tensor([0, 0, 1, 2, 3, 3]), tensor([2, 3, 3, 0, 0, 1]))
    """

    is_row_function = True

    def __init__(
        self,
        *,
        absolute_margin: float | None = None,
        relative_margin: float | None = 0.05,
        max_score: float | None = None,
        min_score: float | None = None,
        range_min: int = 0,
        range_max: int | None = None,
        k: int | None = None,
        reference: Reference = "max",
        **kwargs: Unpack[MinerArguments],
    ) -> None:
        super().__init__(**kwargs)
        if reference not in get_args(Reference):
            raise ValueError(f"reference must be 'max', 'min' or 'mean', got {reference!r}")
        self.record_hyperparameters(
            absolute_margin=None
            if absolute_margin is None
            else arguments.non_negative("absolute_margin", absolute_margin),
            relative_margin=None
            if relative_margin is None
            else arguments.non_negative("relative_margin", relative_margin),
            max_score=None if max_score is None else arguments.finite("max_score", max_score),
            min_score=None if min_score is None else arguments.finite("min_score", min_score),
            range_min=0 if range_min == 0 else arguments.count("range_min", range_min),
            range_max=arguments.count("range_max", range_max, optional=True),
            k=arguments.count("k", k, optional=True),
            reference=reference,
        )
        if range_max is not None and range_max <= range_min:
            raise ValueError(f"range_max must be above range_min = {range_min}, got {range_max}")
        self.share_dropped: float = 0.0
        _pml.record_stat(self, "share_dropped")

    def get_default_distance(self) -> Any:
        """Cosine similarity."""
        return CosineSimilarity()

    def select(self, sim: Tensor, pos: Tensor, neg: Tensor) -> tuple[Tensor, Tensor]:
        """The negatives below the limits, and the positives of their anchors."""
        values = self.hyperparameters()
        # Not among the levels, which are numbers: these may be None.
        sign = 1 if self.distance.is_inverted else -1
        for name in ("max_score", "min_score"):
            values[name] = None if values[name] is None else sign * values[name]
        kept_pos, kept_neg = in_row_blocks(partial(positive_aware, **values), sim, pos, neg)
        if self.collect_stats:
            there = int(count(of_rows(neg, has_any(pos))).sum())
            self.share_dropped = 1 - int(kept_neg.sum()) / there if there else 0.0
        return kept_pos, kept_neg
