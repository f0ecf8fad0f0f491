"""Losses: subclasses of PML's `BaseMetricLossFunction`, usable wherever a PML loss is.

Short names of sources, such as DM18, are in `pml_ext.catalog.KEYS`.

What is not here, and why:

- DCLW, decoupled contrastive with weights: they couple the anchors, may be negative, and its own table is against it.
- H-AP (HAPPIER): it needs graded relevance, which two masks cannot say; with two levels it is `SupAPLoss`.
- Similarity mixup (SiMix): masks do not say which references share a class.
- Potential fields (PFML): without code or settings, and with a minimum at which classes cannot be told apart.
- Non-isotropy (NIR): a normalizing flow trained beside the network, not a term of a few lines.
- Metrix and symmetrical synthesis: see `pml_ext.wrappers.ExpandedReferences`.
- Threshold-consistent margin: it is PML's `ContrastiveLoss` on cosines, the recipe TCM.
"""

from pml_ext.losses.adaptive_binomial_deviance import AdaptiveBinomialDevianceLoss
from pml_ext.losses.anchor_contrastive import AnchorContrastiveLoss
from pml_ext.losses.batch_all_triplet import BatchAllTripletLoss
from pml_ext.losses.batch_hard_triplet import BatchHardTripletLoss
from pml_ext.losses.binomial_deviance import BinomialDevianceLoss
from pml_ext.losses.center import CenterLoss
from pml_ext.losses.clamped_nca import ClampedNCALoss
from pml_ext.losses.class_center_margin import ClassCenterMarginLoss
from pml_ext.losses.decoupled_contrastive import DecoupledContrastiveLoss
from pml_ext.losses.decoupled_nca import DecoupledNCALoss
from pml_ext.losses.easy_positive_triplet import EasyPositiveTripletLoss
from pml_ext.losses.generalized_lifted_structure import GeneralizedLiftedStructureLoss
from pml_ext.losses.hard_negative_contrastive import HardNegativeContrastiveLoss
from pml_ext.losses.hardness_weighted_contrastive import HardnessWeightedContrastiveLoss
from pml_ext.losses.histogram import HistogramLoss
from pml_ext.losses.knn_softmax import KNNSoftmaxLoss
from pml_ext.losses.large_margin_nearest_neighbor import LargeMarginNearestNeighborLoss
from pml_ext.losses.lifted_structure import LiftedStructureLoss
from pml_ext.losses.linear_pull_deviance import LinearPullDevianceLoss
from pml_ext.losses.log_sum_exp_pair import LogSumExpPairLoss
from pml_ext.losses.mean_gap import MeanGapLoss
from pml_ext.losses.multi_similarity import MultiSimilarityLoss
from pml_ext.losses.pair_weighted import PairWeightedLoss
from pml_ext.losses.pnp import PNPLoss
from pml_ext.losses.ranked_pull_deviance import RankedPullDevianceLoss
from pml_ext.losses.raw import RAWLoss
from pml_ext.losses.recall_at_k import RecallAtKLoss
from pml_ext.losses.selectively_contrastive_triplet import SelectivelyContrastiveTripletLoss
from pml_ext.losses.semi_hard_triplet import SemiHardTripletLoss
from pml_ext.losses.sigmoid_pair import SigmoidPairLoss
from pml_ext.losses.smooth_ap import SmoothAPLoss
from pml_ext.losses.soft_triplet import SoftTripletLoss
from pml_ext.losses.sup_ap import SupAPLoss

__all__ = [
    "AdaptiveBinomialDevianceLoss",
    "AnchorContrastiveLoss",
    "BatchAllTripletLoss",
    "BatchHardTripletLoss",
    "BinomialDevianceLoss",
    "CenterLoss",
    "ClampedNCALoss",
    "ClassCenterMarginLoss",
    "DecoupledContrastiveLoss",
    "DecoupledNCALoss",
    "EasyPositiveTripletLoss",
    "GeneralizedLiftedStructureLoss",
    "HardNegativeContrastiveLoss",
    "HardnessWeightedContrastiveLoss",
    "HistogramLoss",
    "KNNSoftmaxLoss",
    "LargeMarginNearestNeighborLoss",
    "LiftedStructureLoss",
    "LinearPullDevianceLoss",
    "LogSumExpPairLoss",
    "MeanGapLoss",
    "MultiSimilarityLoss",
    "PNPLoss",
    "PairWeightedLoss",
    "RAWLoss",
    "RankedPullDevianceLoss",
    "RecallAtKLoss",
    "SelectivelyContrastiveTripletLoss",
    "SemiHardTripletLoss",
    "SigmoidPairLoss",
    "SmoothAPLoss",
    "SoftTripletLoss",
    "SupAPLoss",
]
