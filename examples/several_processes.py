"""Does a loss of several processes do what it does in one?

The same numbers by `python several_processes.py` and by `torchrun --nproc_per_node 2 several_processes.py`. Each
process embeds its part of a batch, here parts of very different sizes, in chunks of 16 without their activations.
"""

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pml_ext.datasets import Glyphs
from pml_ext.evaluation import RetrievalAccuracyCalculator, sharded_accuracy
from pml_ext.losses import RAWLoss
from pml_ext.mining import BalancedBatchSampler
from pml_ext.trainers import Cached
from pml_ext.wrappers import DistributedLoss


def main(steps: int = 20) -> tuple[list[float], float]:
    rank, size = 0, 1
    if "RANK" in os.environ:  # set by torchrun
        dist.init_process_group("gloo")
        rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    glyphs = Glyphs("train")
    images = torch.stack([glyphs[i][0] for i in range(512)])
    network = nn.Sequential(nn.Conv2d(1, 16, 5, 4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(32))
    network(images[:1])

    # What several processes need: this model, this loss, and below which samples are own ones.
    model: nn.Module = Cached(network, 16)
    model = model if size == 1 else DistributedDataParallel(model)
    loss = DistributedLoss(RAWLoss(chunk_size=32))

    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    sampler = BalancedBatchSampler(glyphs.labels[:512], classes_per_batch=12, samples_per_class=4)
    values = []
    for batch in [batch for _ in range(2) for batch in sampler][:steps]:
        own = batch[len(batch) * rank**2 // size**2 : len(batch) * (rank + 1) ** 2 // size**2]
        optimizer.zero_grad()
        value = loss(model(images[own]), glyphs.labels[own])
        value.backward()
        optimizer.step()
        values.append(value.item())

    with torch.no_grad():
        embeddings = nn.functional.normalize(network(images[rank::size]))
    calculator = RetrievalAccuracyCalculator(recall_at=(1,), include=("recall_at_1",))
    recall = sharded_accuracy(calculator, embeddings, glyphs.labels[rank:512:size])["recall_at_1"]
    print(f"process {rank} of {size}: loss {values[0]:.4f}, {values[1]:.4f}, ..; recall@1 in training {recall:.4f}")
    return values, recall


if __name__ == "__main__":
    main()
