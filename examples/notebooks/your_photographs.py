# %% [markdown]
# # Your photographs
#
# A folder with a sub-folder for each class is all that it takes. Here one is drawn first, so that this page runs
# anywhere: letters in colors, 12 classes of 6 pictures. Take your own folder instead.

# %%
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

draw = np.random.default_rng(0)
for letter in "ABCDEFGHKMRS":
    folder = Path("photos") / letter
    folder.mkdir(parents=True)
    for number in range(6):
        picture = Image.new("RGB", (96, 96), tuple(draw.integers(160, 255, 3).tolist()))
        place = tuple(draw.integers(10, 30, 2).tolist())
        ImageDraw.Draw(picture).text(place, letter, fill=tuple(draw.integers(0, 120, 3).tolist()), font_size=56)
        picture.save(folder / f"{number}.png")

# %% [markdown]
# Four lines from an empty notebook to a table. The trunk is pretrained and stays as it is (`frozen`), so its features
# are computed once; leave `frozen` out to train it too.

# %%
import pml_ext

results = pml_ext.Experiment(
    data="photos/", trunk="efficientnet_lite0", image_size=64, losses=["RAW", "NCA"], seeds=2, epochs=4, frozen=True
).run()
results

# %% [markdown]
# One line more: the worst retrievals. Look at them before you look at any number.

# %%
results.mistakes(3)

# %% [markdown]
# The model that the validation classes have chosen finds what looks like an image:

# %%
model = results.best()
model

# %%
model.query("photos/A/0.png", k=4)
