"""Does mining pay on a frozen trunk? One head, trained on random classes, near classes and mined tuples."""

from collections.abc import Iterable

import torch
from torch import nn

from pml_ext.datasets import Digits
from pml_ext.evaluation import evaluate
from pml_ext.losses import RAWLoss
from pml_ext.mining import ClassBatchSampler, MinedBatchSampler, Neighbors, mine


def features(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What a frozen trunk makes of the images, once for all epochs; here an untrained one, yours is pretrained."""
    images = Digits(split)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        trunk = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU()).eval()
        return trunk(torch.stack([image for image, _ in images])), images.labels


def train(batches: str, epochs: int) -> float:
    torch.manual_seed(0)
    x, labels = features("train")
    head, loss = nn.Linear(256, 16), RAWLoss()
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-3)
    near = ClassBatchSampler(labels, classes_per_batch=3, samples_per_class=10, rule=Neighbors(), batches_per_epoch=20)
    for epoch in range(epochs):
        with torch.no_grad():
            embeddings = nn.functional.normalize(head(x))  # what the sampler and the miner look at, every epoch anew
        sampler: Iterable[list[int]]
        if batches == "mined tuples":
            drawn = torch.Generator().manual_seed(epoch)
            mined = mine(embeddings, labels, num_negatives=1, positives="random", generator=drawn)
            tuples = MinedBatchSampler(mined, 30, partners=True, fill=True, seed=epoch)
            sampler = list(tuples)[:20]
        else:
            near.set_epoch(epoch)
            if batches == "near classes":
                near.refresh(embeddings)
            sampler = near
        for batch in sampler:
            optimizer.zero_grad()
            loss(head(x[batch]), labels[batch]).backward()
            optimizer.step()
    test, classes = features("test")
    with torch.no_grad():
        return evaluate(head(test), classes, k=(1,), metrics=("recall",))["recall_at_1"]


def main(epochs: int = 5) -> dict[str, float]:
    results = {batches: train(batches, epochs) for batches in ("random classes", "near classes", "mined tuples")}
    for batches, recall in results.items():
        print(f"{batches}: recall@1 on unseen digits {recall:.3f}")
    return results


if __name__ == "__main__":
    main()
