"""Does a few minutes' training with RAW separate classes the network has never seen?

Trains a small network on half of scikit-learn's digits (0-4) and measures retrieval on the other half (5-9).
"""

import torch
from pytorch_metric_learning.samplers import MPerClassSampler
from torch import nn
from torch.utils.data import DataLoader

from pml_ext.datasets import Digits
from pml_ext.evaluation import RetrievalAccuracyCalculator
from pml_ext.losses import RAWLoss


def recall_at_1(network: nn.Module, test: Digits) -> float:
    with torch.no_grad():
        embeddings = nn.functional.normalize(network(torch.stack([image for image, _ in test])))
    calculator = RetrievalAccuracyCalculator(recall_at=(1,), include=("recall_at_1",))
    return calculator.get_accuracy(embeddings, test.labels)["recall_at_1"]


def main(epochs: int = 3) -> tuple[float, float]:
    torch.manual_seed(0)
    train, test = Digits("train"), Digits("test")
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32))
    before = recall_at_1(network, test)

    loss = RAWLoss()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    sampler = MPerClassSampler(train.labels, m=8, length_before_new_iter=len(train))
    for _ in range(epochs):
        for images, labels in DataLoader(train, batch_size=40, sampler=sampler):
            optimizer.zero_grad()
            loss(network(images), labels).backward()
            optimizer.step()

    after = recall_at_1(network, test)
    print(f"recall@1 on unseen digits: {before:.3f} untrained, {after:.3f} after {epochs} epochs with RAW")
    return before, after


if __name__ == "__main__":
    main()
