"""Losses: subclasses of PML's `BaseMetricLossFunction`, usable wherever a PML loss is.

In the formulas, i is an anchor, P_i and N_i are its positives and its negatives, and |P_i| is their number. s_ij is the
score of anchor i and reference j, where larger is closer: what the `distance` of the loss computes, or minus that if it
is a distance and not a similarity. D_ij = -s_ij. L_i is the loss of an anchor, which the reducer averages, and L that
of a batch. [x]+ is max(0, x), log is the natural logarithm. Arrays have n anchors, m references and d dimensions;
[.., n, m] has any number of leading batch dimensions.

"A level of the distance" is a hyperparameter in the units of the `distance`, such as a cosine of 0.5 or a Euclidean
distance of 1: choose it anew for another distance. "A difference of two scores" is added to or subtracted from scores.
An anchor that lacks the pairs that a loss needs has a loss of 0 and no gradient.

Short names of sources, such as DM18, are in `pml_ext.catalog.KEYS`.

What is not here, and why:

- DCLW, decoupled contrastive learning with weights: the weights couple the anchors and may be negative, and its authors
  report lower accuracy with them in seven of eight settings.
- H-AP (HAPPIER): it needs graded relevance, which two masks cannot express; with two grades it is `SupAPLoss`.
- Similarity mixup (SiMix): it needs to know which references share a class, which masks do not say.
- Potential fields (PFML): published without code or settings, and one of its minima does not separate the classes.
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
