# %% [markdown]
# # Large batches and several processes
#
# A loss of this package needs no triplets: its memory is a matrix of anchors by references, or less.

# %%
import torch
from torch import nn

import pml_ext
from pml_ext.losses import RAWLoss
from pml_ext.trainers import Cached
from pml_ext.wrappers import CrossBatchMemory, DistributedLoss

torch.manual_seed(0)
labels = torch.arange(512) % 64
images = torch.randn(64, 20)[labels] + torch.randn(512, 20)
network = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 16))

# %% [markdown]
# `chunk_size` computes the rows of the matrix in blocks. The value and the gradient stay the same:

# %%
embeddings = network(images)
whole, in_chunks = RAWLoss()(embeddings, labels), RAWLoss(chunk_size=64)(embeddings, labels)
whole.item(), in_chunks.item()

# %% [markdown]
# `Cached` does the same with the network: activations of one chunk at a time, for one more forward pass.


# %%
def gradient(embed):
    network.zero_grad()
    RAWLoss()(embed(images), labels).backward()
    return torch.cat([p.grad.flatten() for p in network.parameters()])


difference = (gradient(network) - gradient(Cached(network, 64))).abs().max()
f"largest difference of a gradient: {difference:.1e}"

# %% [markdown]
# Where the batch cannot grow, a memory of the last batches gives an anchor more to be compared with:

# %%
memory = CrossBatchMemory(RAWLoss(), embedding_size=16, memory_size=512)
for part in torch.arange(512).split(128):
    memory(network(images[part]), labels[part])
pml_ext.pair_weights(memory, network(images[:128]).detach(), labels[:128])

# %% [markdown]
# In several processes each has its part of the batch, and `DistributedLoss` gives the loss of the batch of all, with
# its gradient. In one process it is the loss itself:
#
# ```python
# model = DistributedDataParallel(Cached(network, 64))     # torchrun --nproc-per-node 8 train.py
# loss = DistributedLoss(RAWLoss(chunk_size=256))
# loss(model(images), labels).backward()
# ```

# %%
DistributedLoss(RAWLoss())(embeddings, labels).item() == whole.item()

# %% [markdown]
# How to fill a batch, and what a method costs, for your numbers:

# %%
pml_ext.choose(classes=64, images_per_class=8, batch=512)
