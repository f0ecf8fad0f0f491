# %% [markdown]
# # Compare losses honestly
#
# The same network, the same batches, the same number of steps; only the loss differs. A difference of a point or two
# is noise unless seeds and queries say otherwise. A loss may be a name, an object, an object with a miner, or a
# function of embeddings and labels.

# %%
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import MultiSimilarityMiner

import pml_ext


def pull_and_push(embeddings, labels):
    scores, same = embeddings @ embeddings.T, labels[:, None] == labels[None]
    return scores[~same].relu().mean() - scores[same].mean()


losses = ["RAW", (TripletMarginLoss(), MultiSimilarityMiner()), pull_and_push, "NCA(k=8)"]
results = pml_ext.Experiment(data="digits", losses=losses, seeds=3, epochs=3, steps=8).run()
results

# %% [markdown]
# `rank` says which places the paired differences leave to a loss, `*` which cannot be told from the best. All numbers:

# %%
results.to_frame()[["loss", "seed", "recall_at_1", "mean_average_precision_at_r"]]

# %% [markdown]
# Any two sets of embeddings of the same samples can be compared:

# %%
import torch

labels = torch.arange(300) % 30
draw = torch.Generator().manual_seed(0)
first = torch.nn.functional.one_hot(labels).float() + 0.35 * torch.randn(300, 30, generator=draw)
second = first + 0.1 * torch.randn(300, 30, generator=draw)
pml_ext.compare(first, second, labels)

# %% [markdown]
# A tracker hears of every epoch and every run. Here TensorBoard; the same dozen lines serve any other.

# %%
from torch.utils.tensorboard import SummaryWriter

from pml_ext.benchmark.events import EpochEnded

writer = SummaryWriter("tracked")


def to_tensorboard(event):
    if isinstance(event, EpochEnded):
        for name, value in event.metrics.items():
            writer.add_scalar(f"{event.loss}, seed {event.seed}/{name}", value, event.epoch)


pml_ext.Experiment(data="digits", losses="RAW", epochs=2, steps=8).run(callbacks=[to_tensorboard])
