"""Evaluation of embeddings: recall at any k beside PML's metrics, in PML's testers, with or without faiss."""

from .accuracy import RECALL_AT, RetrievalAccuracyCalculator
from .knn import TorchKNN

__all__ = ["RECALL_AT", "RetrievalAccuracyCalculator", "TorchKNN"]
