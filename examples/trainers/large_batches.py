"""A batch that does not fit into memory: the gradient of the whole batch, in chunks, and what accumulation gives.

`Cached` computes the gradient of the whole batch. Accumulation adds the gradients of small batches, whose samples are
never compared with those of the others: another gradient.
"""

import torch
from torch import Tensor, nn

from pml_ext.datasets import Digits
from pml_ext.losses import RAWLoss
from pml_ext.trainers import Cached

CHUNK = 64


def gradient(network: nn.Module) -> Tensor:
    found = torch.cat([weight.grad.flatten() for weight in network.parameters() if weight.grad is not None])
    network.zero_grad()
    return found


def main(samples: int = 512) -> dict[str, float]:
    torch.manual_seed(0)
    digits = Digits("train")
    drawn = torch.randperm(len(digits))[:samples]
    images, labels = torch.stack([digits[int(i)][0] for i in drawn]), digits.labels[drawn]
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))

    RAWLoss()(network(images), labels).backward()
    whole = gradient(network)

    # 64 images at a time go through the network, 64 rows at a time through the loss; one step of the optimizer.
    RAWLoss(chunk_size=CHUNK)(Cached(network, chunk_size=CHUNK)(images), labels).backward()
    cached = gradient(network)

    parts = list(zip(images.split(CHUNK), labels.split(CHUNK), strict=True))
    for part, names in parts:
        (RAWLoss()(network(part), names) / len(parts)).backward()
    accumulated = gradient(network)

    found = {"cached": cached, "accumulated": accumulated}
    off = {name: ((each - whole).norm() / whole.norm()).item() for name, each in found.items()}
    for name, error in off.items():
        print(f"{name}: the gradient differs from that of the whole batch by {error:.1%}")
    return off


if __name__ == "__main__":
    main()
