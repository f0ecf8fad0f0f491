"""Does a minute of training with RAW separate characters that the network has never seen?

Trains a small network on half of the glyph classes and measures retrieval on the other half.
"""

import torch
from torch import nn
from torch.utils.data import DataLoader

from pml_ext.datasets import Glyphs
from pml_ext.evaluation import RetrievalAccuracyCalculator
from pml_ext.losses import RAWLoss
from pml_ext.mining import BalancedBatchSampler


def block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2))


def recall_at_1(network: nn.Module, test: Glyphs) -> float:
    network.eval()
    with torch.no_grad():
        embeddings = nn.functional.normalize(network(torch.stack([image for image, _ in test])))
    network.train()
    calculator = RetrievalAccuracyCalculator(recall_at=(1,), include=("recall_at_1",))
    return calculator.get_accuracy(embeddings, test.labels)["recall_at_1"]


def main(epochs: int = 4) -> tuple[float, float]:
    torch.manual_seed(0)
    train, test = Glyphs("train"), Glyphs("test")
    network = nn.Sequential(block(1, 16), block(16, 32), block(32, 64), block(64, 64), nn.Flatten(), nn.Linear(256, 64))
    before = recall_at_1(network, test)

    loss = RAWLoss()
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    sampler = BalancedBatchSampler(train.labels, classes_per_batch=16, samples_per_class=4)
    for _ in range(epochs):
        for images, labels in DataLoader(train, batch_sampler=sampler):
            optimizer.zero_grad()
            loss(network(images), labels).backward()
            optimizer.step()

    after = recall_at_1(network, test)
    print(f"recall@1 on unseen characters: {before:.3f} untrained, {after:.3f} after {epochs} epochs with RAW")
    return before, after


if __name__ == "__main__":
    main()
