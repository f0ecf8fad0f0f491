# %% [markdown]
# # A run that goes wrong, and how one finds out
#
# Batch-hard triplet loss with a hinge, trained too fast, maps every image to one point: the loss stays at its margin,
# which looks like a plateau. The health of a run says so.

# %%
import torch
from torch import nn

from pml_ext.analysis import EmbeddingHealth
from pml_ext.datasets import Digits
from pml_ext.losses import BatchHardTripletLoss, RAWLoss

digits = Digits("train")
digits


# %%
def train(loss, learning_rate, steps=60):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
    optimizer = torch.optim.SGD(network.parameters(), lr=learning_rate, momentum=0.9)
    images = torch.stack([digits[i][0] for i in range(len(digits))])
    health = EmbeddingHealth(loss, every=5)
    for step in range(steps):
        index = torch.randint(len(digits), (64,))
        optimizer.zero_grad()
        loss(network(images[index]), digits.labels[index]).backward()
        optimizer.step()
        health.step(step)
    return health


broken = train(BatchHardTripletLoss(margin=0.2), learning_rate=30.0)
broken

# %% [markdown]
# The same network with a smaller step:

# %%
healthy = train(RAWLoss(), learning_rate=0.1)
healthy

# %% [markdown]
# Of embeddings in a file, without any run, `diagnose` says the same:

# %%
import pml_ext

pml_ext.diagnose(torch.ones(40, 8) + 1e-4 * torch.randn(40, 8), torch.arange(40) % 8)

# %% [markdown]
# In an experiment a run that fails is a row of the table, and the others are none the worse for it:


# %%
def not_finite(embeddings, labels):
    return embeddings.sum() * float("inf")


pml_ext.Experiment(data="digits", losses=["RAW", not_finite], epochs=1, steps=8).run()
