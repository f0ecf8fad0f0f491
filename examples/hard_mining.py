"""Which pairs does a hard-mining loss look at while it trains? Ever fewer, and ever harder ones.

Trains a small network on characters with RAW, and draws the similarities of all pairs of a batch, and of those that the
gradient comes from, at four moments.
"""

from pathlib import Path

import torch
from torch import nn

from pml_ext.analysis import PairWeights, pair_weights
from pml_ext.analysis.plots import PULL, PUSH
from pml_ext.datasets import Glyphs
from pml_ext.figures import Picture
from pml_ext.losses import RAWLoss


def train(moments: tuple[int, ...], classes: int = 32) -> dict[int, PairWeights]:
    torch.manual_seed(0)
    glyphs = Glyphs("train")
    images = torch.stack([glyphs[i][0] for i in range(16 * classes)])
    network = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(512, 32)),
    )
    loss, optimizer, found = RAWLoss(), torch.optim.Adam(network.parameters(), lr=3e-3), dict[int, PairWeights]()
    for step in range(max(moments) + 1):
        index = (16 * torch.randperm(classes)[:16].unsqueeze(1) + torch.rand(16, 16).argsort(1)[:, :4]).flatten()
        embeddings, labels = network(images[index]), glyphs.labels[index]
        if step in moments:
            found[step] = pair_weights(loss, embeddings.detach(), labels)
        optimizer.zero_grad()
        loss(embeddings, labels).backward()
        optimizer.step()
    return found


def main(out: Path = Path("hard_mining.svg"), moments: tuple[int, ...] = (0, 20, 60, 150)) -> list[float]:
    found, shares = train(moments), []
    picture = Picture(figsize=(3 * len(moments), 3), layout="constrained")
    for axis, (step, pairs) in zip(picture.subplots(1, len(moments), sharey=True), found.items(), strict=True):
        for kind, mask, color in (("positive", pairs.pos, PULL), ("negative", pairs.neg, PUSH)):
            scores, weights = pairs.similarity[mask].numpy(), pairs.weights[mask].numpy()
            bins = torch.linspace(-1, 1, 31).numpy()
            axis.hist(scores, bins, density=True, color=color, alpha=0.25, label=f"{kind} pairs")
            axis.hist(scores, bins, density=True, color=color, linewidth=2, histtype="step", weights=weights)
        share = float((pairs.weights > 0.01 * pairs.weights.max()).sum() / (pairs.pos | pairs.neg).sum())
        shares.append(share)
        axis.set(title=f"step {step}: {share:.0%} of the pairs count", xlabel="cosine similarity", yticks=[])
    picture.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    picture.suptitle("All pairs (filled), and where the gradient of RAW comes from (outlined)")
    picture.savefig(out, dpi=120)
    print(f"pairs that count: {', '.join(f'{share:.0%}' for share in shares)}; drawn in {out}")
    return shares


if __name__ == "__main__":
    main()
