# %% [markdown]
# # See what a loss does
#
# All that a pair loss does to the embeddings is in its pair weights, the derivative by each similarity.

# %%
import torch

import pml_ext
from pml_ext.analysis.plots import weight_curves, weight_matrix
from pml_ext.losses import RAWLoss

pml_ext.explain("RAW")

# %%
labels = torch.arange(24) // 6
draw = torch.Generator().manual_seed(0)
embeddings = torch.randn(4, 8, generator=draw)[labels] + torch.randn(24, 8, generator=draw)
weights = pml_ext.pair_weights(RAWLoss(), embeddings, labels)
weights

# %%
weight_matrix(weights, labels, title="RAW, one batch")

# %% [markdown]
# Several losses on the same three situations of Wang et al. 2019:

# %%
from pytorch_metric_learning.losses import ContrastiveLoss, MultiSimilarityLoss

weight_curves({"RAW": RAWLoss(), "multi-similarity": MultiSimilarityLoss(), "contrastive": ContrastiveLoss()})

# %% [markdown]
# Figures are matplotlib's: they can be saved, restyled and composed from axes of your own.

# %%
from pml_ext.analysis.plots import weight_scatter
from pml_ext.figures import Picture

picture = Picture(figsize=(9, 3.6), layout="constrained")
for axes, (name, loss) in zip(picture.subplots(1, 2), {"RAW": RAWLoss(), "contrastive": ContrastiveLoss()}.items()):
    weight_scatter(pml_ext.pair_weights(loss, embeddings, labels), title=name, ax=axes)
picture

# %% [markdown]
# Which loss for which data, and how to fill a batch:

# %%
pml_ext.choose(classes=11000, images_per_class=5, batch=256)
