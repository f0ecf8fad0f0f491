"""Methods that compute a loss on slices of the embedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pytorch_metric_learning.distances import BaseDistance, LpDistance

from pml_ext.catalog.deviance import bin_deviance_2018, dist_weight_bin_deviance, dist_weight_neighbour
from pml_ext.catalog.registry import recipe
from pml_ext.losses import KNNSoftmaxLoss
from pml_ext.wrappers import BranchDiversityRegularizer, BranchLoss, MinedLoss, RandomSliceLoss


@recipe("BinBranch", source="DM18, after Opitz et al. 2017 (BIER); BinDeviance2018 on each of 3 slices")
def bin_branch(
    *,
    sizes: int | Sequence[int] = 3,
    alpha: float = 2,
    beta: float = 50,
    base: float = 0.5,
    scale: float = 2,
    balance: float = 1,
    miner_epsilon: float = 0.05,
    **kwargs: Any,
) -> BranchLoss:
    """BinDeviance2018 on each slice."""
    mined = bin_deviance_2018(
        alpha=alpha, beta=beta, base=base, scale=scale, balance=balance, miner_epsilon=miner_epsilon
    )
    return BranchLoss(MinedLoss(*mined), sizes, **kwargs)


@recipe("DevBranch", source="DM18's DistWeightDevBranch; DistWeightBinDeviance on each of 3 slices")
def dev_branch(
    *,
    sizes: int | Sequence[int] = 3,
    alpha: float = 2,
    beta: float = 50,
    base: float = 0.5,
    scale: float = 2,
    balance: float = 1,
    miner_num_negatives: int | None = None,
    miner_per_positive: int | None = None,
    miner_max_z: float | None = None,
    **kwargs: Any,
) -> BranchLoss:
    """DistWeightBinDeviance on each slice."""
    mined = dist_weight_bin_deviance(
        alpha=alpha,
        beta=beta,
        base=base,
        scale=scale,
        balance=balance,
        miner_num_negatives=miner_num_negatives,
        miner_per_positive=miner_per_positive,
        miner_max_z=miner_max_z,
    )
    return BranchLoss(MinedLoss(*mined), sizes, **kwargs)


@recipe("BDWNeighbour", source="DM18; DistWeightNeighbour, with a base of 0.7, on each of 3 slices")
def bdw_neighbour(
    *,
    sizes: int | Sequence[int] = 3,
    alpha: float = 2,
    beta: float = 20,
    base: float = 0.7,
    scale: float = 1,
    balance: float = 1,
    distance: BaseDistance | None = None,
    miner_num_negatives: int | None = None,
    miner_per_positive: int | None = None,
    miner_max_z: float | None = None,
    miner_k: int = 3,
    miner_epsilon: float = 0.05,
    **kwargs: Any,
) -> BranchLoss:
    """DistWeightNeighbour on each slice."""
    mined = dist_weight_neighbour(
        alpha=alpha,
        beta=beta,
        base=base,
        scale=scale,
        balance=balance,
        distance=distance,
        miner_num_negatives=miner_num_negatives,
        miner_per_positive=miner_per_positive,
        miner_max_z=miner_max_z,
        miner_k=miner_k,
        miner_epsilon=miner_epsilon,
    )
    return BranchLoss(MinedLoss(*mined), sizes, **kwargs)


@recipe("EnsembleDWNeighbour", source="DM18; DistWeightNeighbour on each of 3 slices of shuffled columns")
def ensemble_dw_neighbour(
    *,
    sizes: int | Sequence[int] = 3,
    alpha: float = 2,
    beta: float = 20,
    base: float = 1,
    scale: float = 1,
    balance: float = 1,
    distance: BaseDistance | None = None,
    miner_num_negatives: int | None = None,
    miner_per_positive: int | None = None,
    miner_max_z: float | None = None,
    miner_k: int = 3,
    miner_epsilon: float = 0.05,
    **kwargs: Any,
) -> RandomSliceLoss:
    """DistWeightNeighbour on each slice of columns that are shuffled anew in every call."""
    mined = dist_weight_neighbour(
        alpha=alpha,
        beta=beta,
        base=base,
        scale=scale,
        balance=balance,
        distance=distance,
        miner_num_negatives=miner_num_negatives,
        miner_per_positive=miner_per_positive,
        miner_max_z=miner_max_z,
        miner_k=miner_k,
        miner_epsilon=miner_epsilon,
    )
    return RandomSliceLoss(MinedLoss(*mined), sizes, **kwargs)


@recipe("JSDivBranch", source="DM18's JSDivKNNSoftmax, with a true Jensen-Shannon divergence")
def js_div_branch(
    *,
    sizes: int | Sequence[int] = 4,
    alpha: float = 40,
    k: int | None = 100,
    negative_weight: float = 1,
    distance: BaseDistance | None = None,
    beta: float = 40,
    embedding_regularizer_sizes: int | Sequence[int] | None = None,
    **kwargs: Any,
) -> BranchLoss:
    """A k-nearest-neighbor softmax on each slice, and a term that makes the neighbors of the slices differ."""
    regularizer = BranchDiversityRegularizer(
        sizes if embedding_regularizer_sizes is None else embedding_regularizer_sizes, beta=beta
    )
    loss = KNNSoftmaxLoss(alpha=alpha, k=k, negative_weight=negative_weight, distance=distance or LpDistance())
    return BranchLoss(loss, sizes, **({"embedding_regularizer": regularizer} | kwargs))
