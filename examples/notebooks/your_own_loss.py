# %% [markdown]
# # Your own loss, closed form and laws
#
# A loss of rows is one formula: scores (larger is closer) and two masks in, one number for each anchor out. Labels,
# references, distances, reducers and chunks are the shell's job.

# %%
import pml_ext
from pml_ext.extend import RowLoss, masked_logsumexp, softplus


class PairMarginLoss(RowLoss):
    """Every positive closer than every negative by a margin, smoothly."""

    def __init__(self, *, scale=16, margin=0.1, **kwargs):
        super().__init__(**kwargs)
        self.record_hyperparameters(scale=scale, margin=margin)

    def per_anchor(self, sim, pos, neg):
        scale, margin = self.scale, self.margin
        return softplus(masked_logsumexp(scale * sim, neg) + masked_logsumexp(-scale * sim, pos) + scale * margin)


# %% [markdown]
# The laws that hold for any loss of this kind, tried on it: gradients that pull positives and push negatives, anchors
# that do not see one another, batches of every degenerate kind.

# %%
from pml_ext.testing import LOSS_LAWS

pml_ext.laws(PairMarginLoss, only=list(LOSS_LAWS)[:12], examples=10)

# %% [markdown]
# A loss that pushes where it should pull does not get far:


# %%
class Backwards(PairMarginLoss):
    """The masks in each other's place."""

    def per_anchor(self, sim, pos, neg):
        return super().per_anchor(sim, neg, pos)


pml_ext.laws(Backwards, only=["it_learns"], examples=5)

# %% [markdown]
# What it does to pairs, and how it compares:

# %%
from pml_ext.analysis.plots import weight_curves

weight_curves({"pair margin": PairMarginLoss()})

# %%
pml_ext.Experiment(data="digits", losses=["RAW", PairMarginLoss()], epochs=2, steps=8).run()
