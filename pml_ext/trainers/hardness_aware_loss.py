"""Hardness-aware deep metric learning as a module, for any training loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from pytorch_metric_learning.losses import BaseMetricLossFunction
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from pml_ext import arguments
from pml_ext.index_tuples import Triplets
from pml_ext.pairs import IndicesTuple
from pml_ext.ranks import Group, Ranks, gather_same, group_of, same_random_numbers, scaled
from pml_ext.synthesis import pull_negatives
from pml_ext.trainers.schedule import HardnessSchedule
from pml_ext.trainers.tuples import as_triplets
from pml_ext.vectors import at_least_single
from pml_ext.wrappers.base import refuses_references
from pml_ext.wrappers.distributed_call import Call, agreed_sizes


@dataclass(frozen=True)
class HardnessAwareTerms:
    """The losses of one step, all of them scalars, and the factors under which they were taken.

    Args:
        j_m: J_m = J(T), the metric loss of the real tuples.
        j_syn: J_syn = J(T~), the metric loss of the synthetic tuples.
        j_recon: J_recon, the squared error with which the generator recovers the features of the batch.
        j_soft: J_soft, the cross entropy of the classifier on the synthetic features.
        j_ce: J_ce, the cross entropy of the classifier on the features of the batch.
        lam: lambda, the share of their distance that the synthetic negatives kept; no gradient.
        mixing_weight: w, the weight of the real tuples; no gradient.
        hardness_real: mean |z - z+| / mean |z - z-| over the tuples; 1 means that negatives are as near as positives.
            It has no gradient, and neither have the next two.
        hardness_synthetic: the same with the synthetic negatives, before generation.
        hardness_regenerated: the same for the synthetic tuples after they were generated and embedded again.
    """

    j_m: Tensor
    j_syn: Tensor
    j_recon: Tensor
    j_soft: Tensor
    j_ce: Tensor
    lam: Tensor
    mixing_weight: Tensor
    hardness_real: Tensor
    hardness_synthetic: Tensor
    hardness_regenerated: Tensor

    @property
    def j_metric(self) -> Tensor:
        """J_metric = w J(T) + (1 - w) J(T~), which trains trunk and embedder."""
        return self.mixing_weight * self.j_m + (1 - self.mixing_weight) * self.j_syn

    @property
    def j_gen(self) -> Tensor:
        """J_gen = J_recon + J_soft, which trains the generator."""
        return self.j_recon + self.j_soft

    @property
    def total(self) -> Tensor:
        """J_metric + J_gen + J_ce: the gradient of each goes to its own parameters, so one backward serves all."""
        return self.j_metric + self.j_gen + self.j_ce

    def records(self) -> dict[str, Tensor]:
        """All values by name, `j_gen` among them."""
        names = ("j_m", "j_syn", "j_gen", "j_recon", "j_soft", "j_ce", "lam", "mixing_weight")
        ratios = ("hardness_real", "hardness_synthetic", "hardness_regenerated")
        return {name: getattr(self, name) for name in (*names, *ratios)}


@final
class HardnessAwareLoss(nn.Module):
    r"""Trains an embedding on real tuples, and on tuples with synthetic negatives whose hardness follows the training.

    For features y = f(x) of a trunk and embeddings z = g(y), the negative of every tuple is pulled toward its anchor,

        z^- = pull_negatives(z, z+, z-, lambda) ,   lambda = exp(-alpha / J_avg)

    a generator i maps the embeddings back to features, and the embedder embeds these again:

        y' = i(z) ,   y~ = i(z^) ,   z~ = g(y~)         z^ = the anchors, positives and pulled negatives of the tuples
        J_recon  = (1 - soft_share) sum |y - y'|^2       summed over the batch and the dimensions
        J_soft   = soft_factor soft_share mean CE(h(y~), label)
        J_gen    = J_recon + J_soft                      trains the generator i only
        J_ce     = mean CE(h(y), label)                  trains the classifier h only
        J_metric = w J(T) + (1 - w) J(T~) ,   w = exp(-beta / J_gen)         trains trunk and embedder only

    In J_metric, gradients flow through the generator, which is frozen there, and through the pull. J_avg, and J_gen in
    the formula of w, are running averages (`HardnessSchedule`): constants in a step, which are updated in each training
    step.

    Because each term reaches its own parameters and no others, one backward pass of the sum serves all optimizers::

        loss = HardnessAwareLoss(embedder, generator, classifier, metric_loss)
        for images, labels in loader:
            features = trunk(images)
            terms = loss(features, embedder(features), labels)
            for optimizer in (metric_optimizer, generator_optimizer, classifier_optimizer):
                optimizer.zero_grad()
            terms.total.backward()
            for optimizer in (metric_optimizer, generator_optimizer, classifier_optimizer):
                optimizer.step()

    with the parameters of trunk, embedder and `metric_loss` in the first optimizer, those of the generator in the
    second and those of the classifier in the third. `state_dict` holds the averages, and all three networks.

    The defaults of alpha, beta and soft_factor belong to the scales of the paper: features of 1024 dimensions, some 100
    classes, a triplet loss summed over 40 triplets. J_recon is a sum, so it grows with the batch size and the feature
    dimension, and J_soft does not. With features of small dimension J_soft dominates: the generator does not learn to
    recover features, and J_syn has gradients that are larger than those of J_m and unrelated to them. Before trusting a
    schedule, look at the records: `j_recon` should fall below 0.5 (1 - soft_share) times the sum of the squared
    deviations of the features from their mean; until then `mixing_weight` should stay near 1; and `lam` should be
    neither 0 nor 1. To rescale, choose soft_factor such that `j_soft` and `j_recon` are of similar size, then beta as a
    tenth of their sum at the beginning, and alpha near the metric loss.

    Args:
        embedder: g, from features to embeddings. It runs a second time, on the synthetic features.
        generator: i, from embeddings to features, for example `FeatureGenerator`. It runs twice on the same embeddings;
            dropout in it is drawn anew for each run. Only the first run updates its batch statistics.
        classifier: h, from features to logits of the training classes.
        metric_loss: J, a PML loss, ours or PML's, which takes an `indices_tuple`.
        synth_loss: J(T~), a loss that takes an `indices_tuple` and `ref_emb`. Default: the metric loss, which must then
            take references; a memory queue takes none.
        miner: mines the tuples, if a call has no `indices_tuple`. Default: None, with all triplets for T~; their number
            grows with the cube of the batch size, so a miner is advised (`RandomTupleMiner`, `NPairTupleMiner`, PML's).
        alpha: see `HardnessSchedule`. Default 7, for a sum over triplets; 90 is the paper's for the N-pair loss.
        beta: see `HardnessSchedule`. Default 1e4, in the units of J_gen, whose J_recon is a sum.
        period: see `HardnessSchedule`. Default 64.
        soft_factor: factor of the cross entropy in J_soft. Default 1e4.
        soft_share: weight of the cross entropy against the reconstruction error in J_gen, in 0..1. Default 0.5.
        separate_anchors: take the cross entropy of J_soft as the mean over the anchors plus the mean over the
            positives and negatives, as for N-pairs in the reference code, instead of one mean. Default False.
        schedule: a schedule to share; `alpha`, `beta` and `period` are then not used. Default: a new one.
        distributed: True, or a group of `torch.distributed`: the batch is that of all its processes, each of which
            passes its own samples. On every process, the terms are those of one process with the whole batch, and so
            are the gradients, once averaged over the processes as `DistributedDataParallel` does. The trunk runs on own
            samples; everything after it is computed by every process, with batch statistics of all samples. Default
            False.
        synthesis: whether to synthesize negatives; False gives the metric loss alone, with all other terms 0. Default
            True.

    Shape:
        trunk_output [n, feature_size], embeddings [n, d], labels [n] in 0..classes-1 -> `HardnessAwareTerms`.

    Source:
        Zheng, Chen, Lu, Zhou, "Hardness-Aware Deep Metric Learning", CVPR 2019, arXiv 1903.05503, and its reference
        code for the weights of J_gen. We differ from that code where it differs from the paper: J_avg averages the
        plain J(T), and the averages begin at infinity (see `HardnessSchedule`). Triplets with the same anchor and
        positive are one tuple: in T~ each tuple is an anchor of its own, with one positive and its own negatives, so
        a loss that averages over anchors averages over the tuples there. A batch without tuples has J_gen = 0 and
        J(T~) = 0, and the averages do not move.

    Raises:
        TypeError, ValueError: a synth loss that takes no references, a number out of range; in a call, features that
            are not [n, feature_size], labels that are missing, not integers or of another number.

    Example:
        >>> import torch
        >>> from pytorch_metric_learning.losses import TripletMarginLoss
        >>> _ = torch.manual_seed(0)
        >>> embedder, generator, classifier = torch.nn.Linear(8, 2), torch.nn.Linear(2, 8), torch.nn.Linear(8, 2)
        >>> loss = HardnessAwareLoss(embedder, generator, classifier, TripletMarginLoss())
        >>> features, labels = torch.randn(4, 8), torch.tensor([0, 0, 1, 1])
        >>> terms = loss(features, embedder(features), labels)
        >>> terms.total.backward()
        >>> float(terms.lam), float(terms.mixing_weight)
        (1.0, 1.0)
    """

    def __init__(
        self,
        embedder: nn.Module,
        generator: nn.Module,
        classifier: nn.Module,
        metric_loss: BaseMetricLossFunction,
        *,
        synth_loss: BaseMetricLossFunction | None = None,
        miner: Callable[..., Any] | None = None,
        alpha: float = 7,
        beta: float = 1e4,
        period: int = 64,
        soft_factor: float = 1e4,
        soft_share: float = 0.5,
        separate_anchors: bool = False,
        schedule: HardnessSchedule | None = None,
        distributed: Any = False,
        synthesis: bool = True,
    ) -> None:
        super().__init__()
        self.distributed: Any = distributed
        self.embedder: nn.Module = embedder
        self.generator: nn.Module = generator
        self.classifier: nn.Module = classifier
        self.metric_loss = metric_loss
        self.synth_loss: Any = metric_loss if synth_loss is None else synth_loss
        if synthesis and refuses_references(self.synth_loss):
            kind = type(self.synth_loss).__name__
            raise TypeError(
                f"synth_loss must take references (ref_emb): {kind} does not"
                + ("; it is the metric_loss, give a synth_loss beside it" if synth_loss is None else "")
            )
        self.miner = miner
        self.soft_factor: float = arguments.non_negative("soft_factor", soft_factor)
        self.soft_share: float = arguments.fraction("soft_share", soft_share)
        self.separate_anchors: bool = arguments.flag("separate_anchors", separate_anchors)
        self.schedule: HardnessSchedule = HardnessSchedule(alpha, beta, period) if schedule is None else schedule
        self.synthesis: bool = arguments.flag("synthesis", synthesis)

    def forward(
        self,
        trunk_output: Tensor,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: IndicesTuple | None = None,
    ) -> HardnessAwareTerms:
        """The losses of a batch; in training the running averages move on.

        Args:
            trunk_output: y, [n, feature_size].
            embeddings: z = embedder(y), [n, d].
            labels: [n].
            indices_tuple: the tuples, as PML's or our miners return them. Default: those of the miner.
        """
        group = None if self.distributed is False else group_of(None if self.distributed is True else self.distributed)
        if group is None:
            return self._of_batch(trunk_output, embeddings, labels, indices_tuple)
        if indices_tuple is not None:
            raise ValueError("indices_tuple must be None where the batch is that of several processes: give a miner")
        batch = _of_all(group, self, trunk_output, embeddings, labels)
        with same_random_numbers(group, embeddings.device):
            return self._of_batch(*batch, None)

    def _of_batch(
        self, trunk_output: Tensor, embeddings: Tensor, labels: Tensor, indices_tuple: IndicesTuple | None
    ) -> HardnessAwareTerms:
        arguments.batch(embeddings, labels, None, None)
        arguments.batch(trunk_output, labels, None, None)
        if labels is None:
            raise ValueError("HardnessAwareLoss needs labels, got None")
        if labels.is_floating_point() or labels.dtype == torch.bool:
            raise TypeError(f"labels must be integers, the numbers of the classes, got {labels.dtype}")
        labels = labels.to(embeddings.device, torch.long)
        if indices_tuple is None and self.miner is not None:
            indices_tuple = self.miner(embeddings, labels)
        real = self.metric_loss(embeddings, labels, indices_tuple)
        if not self.synthesis:
            terms = self._terms(real)
        else:
            logits = at_least_single(self.classifier(trunk_output.detach()))
            classified = functional.cross_entropy(logits, labels)
            triplets = as_triplets(indices_tuple, labels)
            if len(triplets[0]) == 0:
                terms = self._terms(real, j_ce=classified)
            else:
                terms = self._synthesise(trunk_output, embeddings, labels, triplets, j_m=real, j_ce=classified)
                if self.schedule.training:
                    self.schedule.update(terms.j_m, terms.j_gen)
        self.schedule.record(terms.records())
        return terms

    def _synthesise(
        self, features: Tensor, embeddings: Tensor, labels: Tensor, triplets: Triplets, **losses: Tensor
    ) -> HardnessAwareTerms:
        # Triplets with the same anchor and positive are one tuple.
        tuples, of = torch.unique(torch.stack(triplets[:2]), dim=1, return_inverse=True)  # [2, u], [t]
        (a, p), n = tuples, triplets[2]
        lam, weight = self.schedule.factors()
        anchors, positives, negatives = embeddings[a], embeddings[p], embeddings[n]
        pulled = pull_negatives(anchors[of], positives[of], negatives, lam)
        synthetic_labels = torch.cat([labels[a], labels[p], labels[n]])
        # [n + 2u + t, d]: real and synthetic embeddings, over which the generator takes its batch statistics.
        everything = torch.cat([embeddings, anchors, positives, pulled])

        # What trains the generator: neither its inputs nor its judges learn.
        generated = self.generator(everything.detach())
        recovered, synthetic = generated.split([len(embeddings), len(everything) - len(embeddings)])
        # A sum of squares soon is too large for half precision.
        j_recon = (1 - self.soft_share) * (
            at_least_single(features.detach()) - at_least_single(recovered)
        ).square().sum()
        logits = at_least_single(_frozen(self.classifier, synthetic))
        entropy = functional.cross_entropy(logits, synthetic_labels, reduction="none")
        groups = entropy.split([len(a), len(entropy) - len(a)]) if self.separate_anchors else (entropy,)
        j_soft = self.soft_factor * self.soft_share * torch.stack([group.mean() for group in groups]).sum()

        # What trains trunk and embedder, through the generator, which does not learn.
        regenerated = self.embedder(_frozen(self.generator, everything)[len(embeddings) :])
        z_anchors, z_others = regenerated.split([len(a), len(regenerated) - len(a)])
        rows = torch.arange(len(a), device=n.device)
        columns = len(a) + torch.arange(len(n), device=n.device)
        j_syn = self.synth_loss(
            z_anchors,
            labels[a],
            (rows[of], rows[of], columns),
            ref_emb=z_others,
            ref_labels=synthetic_labels[len(a) :],
        )
        return HardnessAwareTerms(
            **losses,
            j_syn=j_syn,
            j_recon=j_recon,
            j_soft=j_soft,
            lam=lam,
            mixing_weight=weight,
            hardness_real=_hardness(anchors, positives, negatives, of),
            hardness_synthetic=_hardness(anchors, positives, pulled, of),
            hardness_regenerated=_hardness(z_anchors, z_others[: len(a)], z_others[len(a) :], of),
        )

    def _terms(self, j_m: Tensor, **others: Tensor) -> HardnessAwareTerms:
        """Terms without synthesis: the metric loss counts in full."""
        zero = torch.zeros((), dtype=j_m.dtype, device=j_m.device)
        names = ("j_syn", "j_recon", "j_soft", "j_ce", "hardness_real", "hardness_synthetic", "hardness_regenerated")
        values = dict.fromkeys(names, zero) | others
        return HardnessAwareTerms(j_m=j_m, lam=zero + 1, mixing_weight=zero + 1, **values)


def _of_all(
    group: Group, loss: nn.Module, features: Tensor, embeddings: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Features, embeddings and labels of all processes, of which each computes the same."""
    call = Call(embeddings, labels, None, None, None, {"trunk_output": features}, (loss,))
    sizes, _ = agreed_sizes(group, call)
    ranks = Ranks(group, sizes)
    # An average over the processes divides what each has of its own samples by their number.
    own = scaled(embeddings, group.size)
    return ranks.all_rows(features), gather_same(own, ranks), ranks.all_rows(labels.to(embeddings.device))


def _frozen(network: nn.Module, inputs: Tensor) -> Tensor:
    """Run a network so that gradients pass through it but not into it, and its statistics stay as they are."""
    constants = {name: parameter.detach() for name, parameter in network.named_parameters()}
    constants |= {name: buffer.clone() for name, buffer in network.named_buffers()}
    outputs: Tensor = functional_call(network, constants, (inputs,))
    return outputs


@torch.no_grad()
def _hardness(anchors: Tensor, positives: Tensor, negatives: Tensor, of: Tensor) -> Tensor:
    """mean |a - p| / mean |a - n|: [u, d], [u, d], [t, d], [t] -> a scalar, 0 where both are 0."""
    anchors, positives, negatives = map(at_least_single, (anchors, positives, negatives))
    to_positive = torch.linalg.vector_norm(anchors - positives, dim=-1)[of].mean()
    to_negative = torch.linalg.vector_norm(anchors[of] - negatives, dim=-1).mean()
    ratio: Tensor = to_positive / to_negative.clamp(min=torch.finfo(to_negative.dtype).tiny)
    return ratio
