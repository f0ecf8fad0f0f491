"""Do our parts and PML's mix? Four combinations, each one line, on one batch."""

import torch
from pytorch_metric_learning import distances, losses, miners, reducers

from pml_ext.losses import BinomialDevianceLoss, KNNSoftmaxLoss, RAWLoss
from pml_ext.miners import HardNegativePairMiner, InverseDensityMiner


def main() -> dict[str, float]:
    torch.manual_seed(0)
    embeddings, labels = torch.randn(32, 16, requires_grad=True), torch.arange(32) // 4
    results = {
        # Our loss on the pairs of PML's miner.
        "our loss, PML's miner": BinomialDevianceLoss()(
            embeddings, labels, miners.MultiSimilarityMiner(epsilon=0.1)(embeddings, labels)
        ),
        # PML's loss on the pairs of our miner.
        "PML's loss, our miner": losses.ContrastiveLoss()(
            embeddings, labels, InverseDensityMiner(seed=0)(embeddings, labels)
        ),
        # Several losses at once, each with its own miner.
        "both in MultipleLosses": losses.MultipleLosses(
            {"raw": RAWLoss(), "triplet": losses.TripletMarginLoss(margin=0.05)},
            miners={"triplet": HardNegativePairMiner()},
            weights={"raw": 1.0, "triplet": 0.5},
        )(embeddings, labels),
        # Any distance and any reducer of PML, here Manhattan distance and the mean over the anchors that still learn.
        "our loss, PML's distance and reducer": KNNSoftmaxLoss(
            alpha=4, k=8, distance=distances.LpDistance(p=1), reducer=reducers.AvgNonZeroReducer()
        )(embeddings, labels),
    }
    for name, loss in results.items():
        (gradient,) = torch.autograd.grad(loss, embeddings)
        print(f"{name}: loss {loss.item():.4f}, gradient norm {gradient.norm().item():.4f}")
    return {name: loss.item() for name, loss in results.items()}


if __name__ == "__main__":
    main()
