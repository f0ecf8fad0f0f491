"""What do six losses do to a pair? Their pair weights against similarity, side by side in one picture.

All of them on cosine similarity, one anchor with two positives and three negatives. A loss that pulls every positive
alike, or pushes a negative whatever the others do, shows as a flat line.
"""

from pathlib import Path

import torch
from pytorch_metric_learning.distances import CosineSimilarity

from pml_ext import losses, weightings
from pml_ext.analysis import pair_weights
from pml_ext.analysis.plots import weight_curves

LOSSES = {
    "contrastive": losses.AnchorContrastiveLoss(
        pos_margin=1, neg_margin=0.5, average=False, distance=CosineSimilarity()
    ),
    "triplet": losses.BatchAllTripletLoss(margin=0.1, distance=CosineSimilarity()),
    "lifted structure": losses.GeneralizedLiftedStructureLoss(
        pos_margin=0.5, neg_margin=0, distance=CosineSimilarity()
    ),
    "binomial deviance": losses.BinomialDevianceLoss(),
    "multi-similarity": losses.MultiSimilarityLoss(),
    "RAW": losses.RAWLoss(),
}


def main(out: Path = Path("pair_weights.png")) -> dict[str, float]:
    torch.manual_seed(0)
    labels = torch.arange(32) // 4
    embeddings = torch.randn(8, 16)[labels] + torch.randn(32, 16)
    shares = {}
    for name, loss in LOSSES.items():
        found = pair_weights(loss, embeddings, labels)
        shares[name] = float((found.weights > 0.01 * found.weights.max()).sum() / (found.pos | found.neg).sum())
        print(
            f"{name:>18}: pull {found.pull.sum():.3f}, push {found.push.sum():.3f}, {shares[name]:.0%} of pairs count"
        )
    weight_curves(LOSSES).savefig(out, dpi=120)
    print(f"drawn in {out}")

    # The other way round: a loss that is defined by its pair weights, here those of RAW.
    defined = losses.PairWeightedLoss(weightings.raw)
    same = torch.allclose(
        pair_weights(defined, embeddings, labels).weights, pair_weights(LOSSES["RAW"], embeddings, labels).weights
    )
    print(f"a loss defined by the weights of RAW has them: {same}")
    return shares


if __name__ == "__main__":
    main()
