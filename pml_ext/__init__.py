"""Hard-mining and pair-weighting losses, miners and trainers for pytorch-metric-learning."""

__version__ = "0.1.0"
