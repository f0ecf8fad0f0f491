# %% [markdown]
# # Quickstart
#
# From nothing to a table with intervals: one network, three losses, two seeds, handwritten digits. Five digits are
# trained on; the other five, never seen, are searched for images that look alike.

# %%
import pml_ext

results = pml_ext.Experiment(data="digits", losses=["RAW", "NCA", "pml:TripletMarginLoss"], seeds=2, epochs=4).run()
results

# %% [markdown]
# Running the cell once more has the results at once; with more seeds or other losses it has a folder of its own.
# Recall@1 after each epoch, and recall at every k:

# %%
results.curves()

# %%
results.recall()

# %% [markdown]
# What the losses find for images drawn at random, and the worst that the best of them finds:

# %%
results.gallery()

# %%
results.mistakes(5)

# %% [markdown]
# Embeddings of your own need no experiment. They may be arrays of numpy, tensors or lists:

# %%
import numpy as np

labels = np.arange(200) % 20
embeddings = np.eye(20)[labels] + 0.3 * np.random.default_rng(0).normal(size=(200, 20))
pml_ext.evaluate(embeddings, labels, k=(1, 5))

# %%
pml_ext.diagnose(embeddings, labels)
