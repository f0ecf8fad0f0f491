"""Losses, samplers and miners since 2018 on frozen features: with clean labels, and with classes split at random.

    python benchmarks/since_2018.py cub:CUB_200_2011 omniglot:DIR --out runs/since_2018

Features are those of a protocol (`frozen-head`), computed once; training, validation and test classes too. Of the
training classes a quarter is then split in two at random: false negatives, which guided and positive-aware mining are
for. Validation and test classes keep their labels. `RAW`, `MultiSimilarity` and random classes are what all is
compared with.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import image_options
import torch
from torch import Tensor, nn

from pml_ext.benchmark import Experiment, run
from pml_ext.benchmark.data import Data
from pml_ext.benchmark.frozen import prepared
from pml_ext.benchmark.models import Network
from pml_ext.catalog import Recipe
from pml_ext.datasets.samples import Samples
from pml_ext.losses import MultiSimilarityLoss, SigmoidPairLoss
from pml_ext.miners import AmbiguousNegativeMiner, GuidedMiner, PositiveAwareMiner
from pml_ext.wrappers import ExpandedReferences, MinedLoss

KNOWN = ("RAW", "MultiSimilarity")
CONTRASTIVE = ("DecoupledContrastive", "Debiased", "HCL", "H-SCL", "HardnessWeightedContrastive", "SCT")
RANKS = ("SmoothAP", "ROADMAP", "RS@k", "SupRecall", "PNP")
SAMPLERS = ("neighbors", "greedy", "doubles", "mixed", "mined")


class GuidedByFeatures(GuidedMiner):
    """The guide is the frozen trunk: the features of the batch that the head was given last."""

    features: Tensor

    @classmethod
    def watch(cls, module: nn.Module, given: tuple[Any, ...]) -> None:
        """Keep what a network is given; a hook for all modules."""
        if isinstance(module, Network):
            cls.features = given[0]

    def forward(self, embeddings: Tensor, labels: Tensor, *references: Any) -> Any:
        """Mine the batch that the head was given last."""
        return super().forward(embeddings, labels, *references, guide=self.features)


def composed() -> tuple[Recipe, ...]:
    """What is made of parts: each is new for every experiment."""
    parts = {
        "SigmoidPair": SigmoidPairLoss(),
        "MS+PositiveAware": MinedLoss(MultiSimilarityLoss(), PositiveAwareMiner()),
        "MS+Guided": MinedLoss(MultiSimilarityLoss(), GuidedByFeatures()),
        "MS+Ambiguous": MinedLoss(MultiSimilarityLoss(), AmbiguousNegativeMiner(seed=0)),
        "MS+Expanded": ExpandedReferences(MultiSimilarityLoss()),
    }
    return tuple(Recipe(name, loss, None, "ours") for name, loss in parts.items())


def with_split_classes(data: Data, share: float, seed: int) -> Samples:
    """The vectors of all parts with their labels; a share of the training classes is split in two at random."""
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    names, vectors, split = [], [], []
    generator = torch.Generator().manual_seed(seed)
    count = len(data.train.classes)
    halved = set(torch.randperm(count, generator=generator)[: round(share * count)].tolist())
    for part, samples in ((key, value) for key, value in parts.items() if value is not None):
        coins = torch.rand(len(samples.labels), generator=generator) < 0.5
        for label, coin in zip(samples.labels.tolist(), coins.tolist(), strict=True):
            second = part == "train" and label in halved and coin
            names.append(f"{part} {label}{' b' if second else ''}")
        vectors.append(samples.vectors)
        split += [part] * len(samples.labels)
    classes = tuple(sorted(set(names)))
    places = {name: place for place, name in enumerate(classes)}
    labels = torch.tensor([places[name] for name in names])
    return Samples(data.name, labels, classes, vectors=torch.cat(vectors).float(), split=tuple(split))


def table(source: str, protocol: str, seeds: tuple[int, ...], out: Path, share: float, **arguments: Any) -> None:
    """All runs of one data set: a table for each sampler, clean and with split classes."""
    whole = Experiment(data=source, protocol=protocol, losses=KNOWN, seeds=seeds, **arguments)
    (data,) = prepared(whole, [Data.of(whole)], print)
    for condition, part in (("clean", 0.0), ("split", share)):
        vectors = with_split_classes(data, part, seed=0)
        plain = replace(whole, data=vectors, frozen=False, trunk="conv4", image_size=None, shorter_side=None)
        folder = out / data.name / condition
        losses = (*KNOWN, *CONTRASTIVE, *RANKS, *composed())
        run(replace(plain, losses=losses, out=str(folder / "classes")), resume=None, say=print)
        for sampler in SAMPLERS:
            run(replace(plain, sampler=sampler, out=str(folder / sampler)), resume=None, say=print)


def main() -> None:
    """Read the command line and make the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="as --data of python -m pml_ext.benchmark")
    parser.add_argument("--protocol", default="frozen-head", help="default: frozen-head")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--share", type=float, default=0.25, help="of the training classes that are split, default .25")
    parser.add_argument("--learning-rate", type=float, help="of the head; default: that of the protocol")
    image_options.add_to(parser, "runs/since_2018")
    given = parser.parse_args()
    nn.modules.module.register_module_forward_pre_hook(GuidedByFeatures.watch)
    wanted = image_options.arguments(given)
    if given.learning_rate is not None:
        wanted["learning_rate"] = given.learning_rate
    for source in given.data:
        table(source, given.protocol, tuple(given.seeds), given.out, given.share, **wanted)


if __name__ == "__main__":
    main()
