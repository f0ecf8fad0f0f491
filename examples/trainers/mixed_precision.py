"""Automatic mixed precision: the network in half precision; the loss computes in float32 where it takes exponents."""

import torch
from torch import nn
from torch.utils.data import DataLoader

from pml_ext.datasets import Digits
from pml_ext.losses import RAWLoss
from pml_ext.mining import BalancedBatchSampler


def main(epochs: int = 3) -> list[float]:
    torch.manual_seed(0)
    device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.bfloat16)
    digits = Digits("train")
    batches = BalancedBatchSampler(digits.labels, classes_per_batch=5, samples_per_class=8)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16)).to(device)
    loss = RAWLoss()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler(device, enabled=dtype is torch.float16)  # bfloat16 needs none
    values = []
    for _ in range(epochs):
        for images, labels in DataLoader(digits, batch_sampler=batches):
            optimizer.zero_grad()
            with torch.autocast(device, dtype=dtype):
                value = loss(network(images.to(device)), labels.to(device))
            scaler.scale(value).backward()
            scaler.step(optimizer)
            scaler.update()
            values.append(value.item())
    print(f"loss {values[0]:.3f}, after {len(values)} steps of {dtype} {values[-1]:.3f}")
    return values


if __name__ == "__main__":
    main()
