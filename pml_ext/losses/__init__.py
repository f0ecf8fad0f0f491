"""Losses: subclasses of PML's `BaseMetricLossFunction`, usable wherever a PML loss is."""

from pml_ext.losses.batch_all_triplet import BatchAllTripletLoss
from pml_ext.losses.binomial_deviance import BinomialDevianceLoss
from pml_ext.losses.knn_softmax import KNNSoftmaxLoss
from pml_ext.losses.large_margin_nearest_neighbor import LargeMarginNearestNeighborLoss
from pml_ext.losses.raw import RAWLoss

__all__ = ["BatchAllTripletLoss", "BinomialDevianceLoss", "KNNSoftmaxLoss", "LargeMarginNearestNeighborLoss", "RAWLoss"]
