"""Losses and miners that are wrong on purpose, each in one way, beside the law that must notice.

`Sound` and `SoundMiner` keep all laws; a mutant changes one line of them.
"""

import random

import torch
from mistakes import CountsForgotten, TiesNotShared
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning import miners as pml_miners
from pytorch_metric_learning.distances import CosineSimilarity, LpDistance

from pml_ext import arguments
from pml_ext.base import BatchLoss, RowLoss
from pml_ext.closed_form import ABSENT, SideWeights, above
from pml_ext.masked import Counted, masked_mean, masked_min, nearest, softplus
from pml_ext.miners.base import PairMiner, in_row_blocks
from pml_ext.pairs import PairMasks
from pml_ext.sampling import sample
from pml_ext.seeded import Seeded
from pml_ext.wrappers.base import LossWrapper

LOSS_MUTANTS, MINER_MUTANTS = {}, {}


def breaks(*laws, of=LOSS_MUTANTS):
    """Enter a mutant, a class or a function that makes one, with the laws that must notice it."""

    def enter(mutant):
        of[mutant.__name__] = mutant, laws
        return mutant

    return enter


class Sound(RowLoss):
    """Softplus terms around a level; nothing is wrong with it."""

    needs, levels, steepness = "either", ("base",), 5

    def __init__(self, base=0.5, **kwargs):
        super().__init__(**kwargs)
        self.record_hyperparameters(base=arguments.finite("base", base))

    def get_default_distance(self):
        return CosineSimilarity()

    @property
    def level(self):
        return self.hyperparameters()["base"]

    def costs(self, sim):
        x = self.steepness * (sim - self.level)
        return softplus(-x), softplus(x)

    def per_anchor(self, sim, pos, neg):
        pull, push = self.costs(sim)
        return masked_mean(pull, pos) + masked_mean(push, neg)


@breaks("positives_are_pulled_and_negatives_pushed")
class NegativesPulled(Sound):
    def costs(self, sim):
        return super().costs(sim)[0], super().costs(sim)[0]


@breaks("positives_are_pulled_and_negatives_pushed", "it_learns")
class SidesExchanged(Sound):
    def costs(self, sim):
        return super().costs(sim)[::-1]


@breaks("anchors_are_independent")
class RelativeToTheBatch(Sound):
    def per_anchor(self, sim, pos, neg):
        losses = super().per_anchor(sim, pos, neg)
        return losses - losses.mean() / 2


@breaks("unselected_pairs_have_no_influence")
class MasksIgnored(Sound):
    def per_anchor(self, sim, pos, neg):
        return super().per_anchor(sim, pos, neg) + sim.mean(-1) * neg.any(-1)


@breaks("unselected_pairs_have_no_influence")
class MasksMultiplied(Sound):
    def per_anchor(self, sim, pos, neg):
        pull, push = (self.steepness * (self.level - sim)).exp(), (self.steepness * (sim - self.level)).exp()
        return ((pull * pos).sum(-1) + (push * neg).sum(-1)).log1p()


@breaks("one_finite_number_per_anchor")
class EmptySideDivided(Sound):
    def per_anchor(self, sim, pos, neg):
        pull, push = self.costs(sim)
        return (pull * pos).sum(-1) / pos.sum(-1) + masked_mean(push, neg)


@breaks("one_finite_number_per_anchor")
class CountsOfOneByte(Sound):
    def per_anchor(self, sim, pos, neg):
        triplets = pos.sum(-1, dtype=torch.uint8) * neg.sum(-1, dtype=torch.uint8)
        return Counted(super().per_anchor(sim, pos, neg), triplets)


@breaks("large_scores_stay_finite")
class UnstableSoftplus(Sound):
    def costs(self, sim):
        x = self.steepness * (sim - self.level)
        return x.neg().exp().log1p(), x.exp().log1p()


@breaks("matrix_is_not_written_to")
class WritesInPlace(Sound):
    def per_anchor(self, sim, pos, neg):
        neg |= False
        return super().per_anchor(sim, pos, neg)


@breaks("float32_is_float64_rounded")
class CancelsDigits(Sound):
    def costs(self, sim):
        return super().costs((sim + 1e4) - 1e4)


@breaks("column_order_is_irrelevant")
class FirstColumnsMatterMore(Sound):
    def costs(self, sim):
        falling = torch.linspace(2, 1, sim.shape[-1], dtype=sim.dtype, device=sim.device)
        return tuple(x * falling for x in super().costs(sim))


@breaks("leading_dimensions_are_batch_dimensions")
class SumsOverDimensionOne(Sound):
    def per_anchor(self, sim, pos, neg):
        pull, push = self.costs(sim)
        return torch.where(pos, pull, 0.0).sum(1) + torch.where(neg, push, 0.0).sum(1)


@breaks("negated_distance_agrees")
class LevelWithoutItsSign(Sound):
    @property
    def level(self):
        return self.base


@breaks("levels_are_declared")
class LevelNotDeclared(Sound):
    levels = ()


@breaks("all_pairs_equal_labels", "all_triplets_equal_labels", "references_equal_to_the_batch_agree")
class SelfPairsKept(Sound):
    needs = "both"

    def loss_dict(self, embeddings, labels, indices_tuple, ref_emb, ref_labels):
        copy = ref_emb.view_as(ref_emb)  # no longer the same object
        return super().loss_dict(embeddings, labels, indices_tuple, copy, ref_labels)


@breaks("only_the_relation_counts")
class SelfPairsOfARelationKept(Sound):
    def loss_dict(self, embeddings, labels, indices_tuple, ref_emb, ref_labels):
        refs = ref_emb.view_as(ref_emb) if isinstance(indices_tuple, PairMasks) else ref_emb
        return super().loss_dict(embeddings, labels, indices_tuple, refs, ref_labels)


@breaks("pairs_need_no_labels")
class PairsIgnored(Sound):
    def loss_dict(self, embeddings, labels, indices_tuple, ref_emb, ref_labels):
        return super().loss_dict(embeddings, labels, None, ref_emb, ref_labels)


@breaks("references_equal_to_the_batch_agree")
class ReferencesIgnored(Sound):
    def loss_dict(self, embeddings, labels, indices_tuple, ref_emb, ref_labels):
        return super().loss_dict(embeddings, labels, indices_tuple, embeddings, labels)


@breaks("references_are_a_set")
class FirstReferencesMatterMore(Sound):
    def similarity(self, embeddings, ref_emb):
        sim = super().similarity(embeddings, ref_emb)
        return sim if ref_emb is None else sim * torch.arange(sim.shape[1])


@breaks("label_names_are_irrelevant")
class LabelsAsNumbers(Sound):
    def forward(self, embeddings, labels=None, *args, **kwargs):
        return super().forward(embeddings, labels, *args, **kwargs) * labels.sum()


@breaks("batch_order_is_irrelevant")
class FirstSampleTwice(Sound):
    def forward(self, embeddings, *args, **kwargs):
        return super().forward(embeddings, *args, **kwargs) + embeddings[:1].norm()


@breaks("rotation_changes_nothing", "length_changes_nothing", "no_anchor_no_loss")
class FirstCoordinate(Sound):
    def forward(self, embeddings, *args, **kwargs):
        return super().forward(embeddings, *args, **kwargs) + embeddings[:, 0].square().mean()


@breaks("translation_changes_nothing")
def norms_added():
    return FirstCoordinate(distance=LpDistance())


@breaks("hand_written_gradients_agree_with_autograd", "closed_form_is_the_loss")
class HalfTheClosedForm(Sound):
    @staticmethod
    def closed_form(sides, *, base):
        pos, neg = 5 * (base - sides.pos), 5 * (sides.neg - base)
        losses = softplus(pos).sum(1) / sides.pos_count.squeeze(1).clamp(min=1)
        losses = losses + softplus(neg).sum(1) / sides.neg_count.squeeze(1).clamp(min=1)
        return SideWeights(losses, 0 * pos, 5 * neg.sigmoid() / sides.neg_count.clamp(min=1))


@breaks("hand_written_gradients_agree_with_autograd")
class HalfTheClosedFormOfABatch(BatchLoss):
    def get_default_distance(self):
        return LpDistance()

    def per_batch(self, sim, pos, neg):
        pos, neg = pos.flatten(-2), neg.flatten(-2)
        return masked_mean(sim.flatten(-2), neg) - masked_mean(sim.flatten(-2), pos)

    @staticmethod
    def closed_form(sides):
        pos, neg = sides.pos_count.sum().clamp(min=1), sides.neg_count.sum().clamp(min=1)
        there = above(sides.neg, -ABSENT / 2)
        loss = (sides.neg * there).sum() / neg - (sides.pos * (sides.pos < ABSENT / 2)).sum() / pos
        return SideWeights(loss, 0 * sides.pos, there / neg)


def closed_form_of_sound(sides, *, base):
    """What `Sound` computes, in closed form."""
    pos, neg = 5 * (base - sides.pos), 5 * (sides.neg - base)
    pos_count, neg_count = sides.pos_count.clamp(min=1), sides.neg_count.clamp(min=1)
    losses = (softplus(pos) / pos_count).sum(1) + (softplus(neg) / neg_count).sum(1)
    return SideWeights(losses, -5 * pos.sigmoid() / pos_count, 5 * neg.sigmoid() / neg_count)


class SoundClosedForm(Sound):
    """Nothing is wrong with it either."""

    closed_form = staticmethod(closed_form_of_sound)


@breaks("hand_written_gradients_agree_with_autograd")
class SignOfTheClosedForm(Sound):
    @staticmethod
    def closed_form(sides, *, base):
        found = closed_form_of_sound(sides, base=base)
        return found._replace(pos=-found.pos)


@breaks("thresholds_change_nothing")
class RelativeToTheBlock(Sound):
    @staticmethod
    def closed_form(sides, *, base):
        found = closed_form_of_sound(sides, base=base)
        return found._replace(losses=found.losses * len(found.losses) ** 0.5) if len(sides.neg) < 4 else found


@breaks("large_batches_agree_with_autograd")
class LastRowOfALongBlockLost(Sound):
    @staticmethod
    def closed_form(sides, *, base):
        found = closed_form_of_sound(sides, base=base)
        if len(sides.neg) > 32:
            found.neg[-1] = 0
        return found


@breaks("chunk_size_changes_nothing")
class DividedByTheRows(Sound):
    def of_pairs(self, *batch):
        return super().of_pairs(*batch, lambda sim, *masks: self.per_anchor(sim, *masks) / len(sim), None)


@breaks("any_batch_has_a_finite_loss", "degenerate_batches_have_a_finite_loss", "every_distance_is_welcome")
class Standardised(Sound):
    """Divides by a norm that may be 0, and takes the square root of scores that may be negative."""

    def similarity(self, embeddings, ref_emb):
        sim = super().similarity(embeddings, ref_emb)
        return sim.abs().sqrt() / embeddings.norm(dim=1, keepdim=True) + (sim + 1).sqrt()


@breaks("empty_batch_costs_nothing", "no_references_cost_nothing")
class EmptinessNotSeen(Sound):
    def forward(self, embeddings, labels=None, indices_tuple=None, ref_emb=None, ref_labels=None):
        loss = super().forward(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        return loss + 0 * (embeddings if ref_emb is None else ref_emb).mean()


@breaks("batch_is_not_written_to")
class NormalizesInPlace(Sound):
    def loss_dict(self, embeddings, *args):
        embeddings.data.div_(embeddings.data.norm(dim=1, keepdim=True) + 1)
        return super().loss_dict(embeddings, *args)


@breaks("half_precision_is_close")
class ComputesInHalfPrecision(Sound):
    steepness = 20

    def similarity(self, embeddings, ref_emb):
        return self.distance(embeddings, ref_emb)

    def costs(self, sim):
        return tuple(x.exp() for x in super().costs(sim))


@breaks("loss_dict_is_well_formed", "losses_are_one_per_anchor")
class LossesOfTwoDimensions(Sound):
    def loss_dict(self, *args):
        result = super().loss_dict(*args)
        if torch.is_tensor(result["loss"]["losses"]):
            result["loss"]["losses"] = result["loss"]["losses"].unsqueeze(1)
        return result


@breaks("loss_dict_is_well_formed")
class KeyThatIsNotDeclared(Sound):
    def loss_dict(self, *args):
        return {"ap_loss": super().loss_dict(*args)["loss"]}


@breaks("reducers_are_obeyed")
class ReducesItself(Sound):
    def loss_dict(self, *args):
        result = super().loss_dict(*args)
        if torch.is_tensor(result["loss"]["losses"]):
            result["loss"]["losses"] = result["loss"]["losses"] / len(args[0])
        return result

    def forward(self, *args, **kwargs):
        value = super().forward(*args, **kwargs)
        return value if isinstance(value, dict) else value * 2


@breaks("copies_are_equal")
class CannotBePickled(Sound):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.scale = lambda x: x


@breaks("calls_leave_no_trace")
class Remembers(Sound):
    calls = 0

    def per_anchor(self, sim, pos, neg):
        self.calls += 1
        return super().per_anchor(sim, pos, neg) * self.calls


@breaks("nothing_waits_for_the_device", "compiles_as_one_graph")
class AsksForAValue(Sound):
    def per_anchor(self, sim, pos, neg):
        return super().per_anchor(sim, pos, neg) * (1 if sim.max().item() > -9 else 2)


@breaks("compiles_as_one_graph")
class BreaksTheGraph(Sound):
    def per_anchor(self, sim, pos, neg):
        torch._dynamo.graph_break()
        return super().per_anchor(sim, pos, neg)


@breaks("it_learns", "one_pair_of_each_kind_is_enough")
class Flat(Sound):
    def costs(self, sim):
        return tuple(x * 0 for x in super().costs(sim))


@breaks("one_pair_of_each_kind_is_enough", "loss_dict_is_well_formed")
def pml_multi_similarity():
    return pml_losses.MultiSimilarityLoss()


if hasattr(pml_losses, "SmoothAPLoss"):  # from PML 2.9 on

    @breaks("loss_dict_is_well_formed")
    def pml_smooth_ap():
        return pml_losses.SmoothAPLoss()


LOSS_MUTANTS["TiesNotShared"] = TiesNotShared, ("equal_scores_share_the_gradient_of_autograd",)
LOSS_MUTANTS["CountsForgotten"] = CountsForgotten, ("divisors_agree_with_autograd",)


@breaks("equal_samples_are_treated_alike")
class TheFirstOfEqualsIsPushed(Sound):
    def per_anchor(self, sim, pos, neg):
        nearest = sim.masked_fill(~neg, -100).max(-1).values
        return super().per_anchor(sim, pos, neg) + softplus(nearest - self.level)


@breaks("references_that_nobody_is_compared_with_change_nothing")
class MeansOverAllReferences(Sound):
    def per_anchor(self, sim, pos, neg):
        pull, push = self.costs(sim)
        return torch.where(pos, pull, 0.0).mean(-1) + torch.where(neg, push, 0.0).mean(-1)


@breaks("a_single_reference_has_a_finite_loss")
class StandardDeviationOfEachRow(Sound):
    def similarity(self, embeddings, ref_emb):
        sim = super().similarity(embeddings, ref_emb)
        return sim / (1 + sim.std(1, keepdim=True))

    def is_empty(self, embeddings, ref_emb):
        return len(embeddings) == 0 or len(ref_emb) == 0


@breaks("labels_of_references_are_not_ignored")
class LabelsOfReferencesIgnored(Sound):
    def loss_dict(self, embeddings, labels, indices_tuple, ref_emb, ref_labels):
        same = ref_emb.data_ptr() == embeddings.data_ptr()
        return super().loss_dict(embeddings, labels, indices_tuple, ref_emb, labels if same else ref_labels)


@breaks("one_zero_vector_moves_no_mountains")
class DirectionOfAZeroVector(Sound):
    def similarity(self, embeddings, ref_emb):
        unit, refs = (
            torch.nn.functional.normalize(x.double(), eps=1e-12)
            for x in (embeddings, embeddings if ref_emb is None else ref_emb)
        )
        return (unit @ refs.t()).to(embeddings.dtype)


@breaks("what_is_no_number_makes_the_loss_none", "what_is_no_number_stays_with_its_anchor")
class NaNIsNothing(Sound):
    def similarity(self, embeddings, ref_emb):
        return super().similarity(embeddings, ref_emb).nan_to_num()


@breaks("what_is_no_number_stays_with_its_anchor")
class OneForAll(Sound):
    def per_anchor(self, sim, pos, neg):
        losses = super().per_anchor(sim, pos, neg)
        return losses - losses.mean() / 2


@breaks("every_dtype_of_labels_will_do")
class LabelsOfOneByte(Sound):
    def forward(self, embeddings, labels=None, *args, **kwargs):
        if labels is not None and labels.dtype == torch.float16:
            labels = torch.zeros_like(labels)
        return super().forward(embeddings, labels, *args, **kwargs)


@breaks("every_default_device_will_do")
class NamesNoDevice(Sound):
    def per_anchor(self, sim, pos, neg):
        return super().per_anchor(sim, pos, neg) * (torch.arange(sim.shape[-1]).sum() + 1)


@breaks("float32_keeps_small_distances_among_large_ones")
class DistancesCancel(Sound):
    def similarity(self, embeddings, ref_emb):
        a, r = embeddings, embeddings if ref_emb is None else ref_emb
        square = a.square().sum(1, keepdim=True) + r.square().sum(1) - 2 * a @ r.t()
        return -square.clamp(min=1e-30).sqrt()


class Memory(Sound):
    """The mean of the batches, towards which samples are pulled a little; nothing is wrong with it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))

    def step(self, embeddings):
        return embeddings.detach()[embeddings.isfinite().all(1)].double().mean() - self.mean

    def remember(self, embeddings, labels):
        if self.training and len(embeddings):
            with torch.inference_mode(False):
                self.mean = self.mean + 0.5 * self.step(embeddings).clone()

    def forward(self, embeddings, labels=None, *args, **kwargs):
        loss = super().forward(embeddings, labels, *args, **kwargs) + (embeddings - self.mean).square().mean()
        self.remember(embeddings, labels)
        return loss


@breaks("evaluation_changes_no_state")
class RemembersInEvalMode(Memory):
    training = property(lambda self: True, lambda self, value: None)


@breaks("a_bad_batch_is_survived")
class RemembersNaN(Memory):
    def step(self, embeddings):
        return embeddings.detach().double().mean() - self.mean


@breaks("state_comes_back_from_a_file")
class SavesIntegers(Memory):
    def get_extra_state(self):
        return {"mean": int(100 * self.mean)}

    def set_extra_state(self, state):
        self.mean = torch.tensor(state["mean"] / 100, dtype=torch.float64)


@breaks("a_narrow_batch_narrows_no_state")
class AsNarrowAsTheBatch(Memory):
    def remember(self, embeddings, labels):
        super().remember(embeddings, labels)
        self.mean = self.mean.to(embeddings.dtype)


@breaks("inference_before_training_does_no_harm")
class RemembersInferenceTensors(Memory):
    def remember(self, embeddings, labels):
        self.mean = self.mean + 0.5 * self.step(embeddings)

    def forward(self, embeddings, labels=None, *args, **kwargs):
        more = (embeddings * self.mean).square().mean()
        return super().forward(embeddings, labels, *args, **kwargs) + more


@breaks("hyperparameters_may_be_set_later")
class ReadsItsLevelOnce(Sound):
    def __init__(self, base=0.5, **kwargs):
        super().__init__(base, **kwargs)
        self.once = base

    level = property(lambda self: self.once)


class SoundWrapper(LossWrapper):
    """The mean of a loss and of the squared lengths; nothing is wrong with it."""

    def __init__(self, loss, *, lengths=False, **kwargs):
        super().__init__(loss, **kwargs)
        self.record_hyperparameters(lengths=lengths)

    def loss_dict(self, embeddings, labels, indices_tuple, ref_emb, ref_labels):
        refs = (None, None) if ref_emb is embeddings else (ref_emb, ref_labels)
        loss = self.loss(embeddings, labels, indices_tuple, *refs)
        return self.reduced(loss + embeddings.square().sum(1).mean() if self.lengths else loss)


class ReducerIgnored(SoundWrapper):
    def __init__(self, loss, *, reducer=None, **kwargs):
        super().__init__(loss, **kwargs)


class FlagIgnored(SoundWrapper):
    def __init__(self, loss, *, twice=False, **kwargs):
        super().__init__(loss, **kwargs)
        self.twice = twice


@breaks("what_a_wrapper_is_given_is_used")
def a_reducer_is_ignored():
    return ReducerIgnored(Sound())


@breaks("what_a_wrapper_is_given_is_used")
def a_flag_is_ignored():
    return FlagIgnored(Sound())


class SoundMiner(PairMiner):
    """Negatives closer than the farthest positive; nothing is wrong with it."""

    levels = ("base",)

    def __init__(self, base=-1.0, **kwargs):
        super().__init__(**kwargs)
        self.record_hyperparameters(base=base)

    def get_default_distance(self):
        return CosineSimilarity()

    @property
    def level(self):
        return self.hyperparameters()["base"]

    def select(self, sim, pos, neg):
        return pos & (sim >= self.level), neg & (sim > masked_min(sim, pos))


@breaks("a_row_function_is_one", of=MINER_MUTANTS)
class AMeanOfTheBatch(SoundMiner):
    is_row_function = True

    def select(self, sim, pos, neg):
        return pos, neg & (sim > sim[neg].mean())


@breaks("a_row_function_is_one", of=MINER_MUTANTS)
class CoinsForEachRow(SoundMiner):
    is_row_function = True

    def select(self, sim, pos, neg):
        return pos, neg & (torch.rand(sim.shape) < 0.5)


@breaks("a_single_reference_can_be_mined", of=MINER_MUTANTS)
class NearestButOne(SoundMiner):
    def select(self, sim, pos, neg):
        return pos, neg & (sim < sim.topk(2).values[:, :1])


@breaks("hyperparameters_of_a_miner_may_be_set_later", of=MINER_MUTANTS)
class ReadsTheLevelOfAMinerOnce(SoundMiner):
    def __init__(self, base=-0.25, **kwargs):
        super().__init__(base, **kwargs)
        self.once = base

    level = property(lambda self: self.once)


@breaks("every_dtype_of_labels_will_do_to_mine", of=MINER_MUTANTS)
class MinesIntegersOnly(SoundMiner):
    def mine(self, embeddings, labels, ref_emb, ref_labels):
        return super().mine(
            embeddings, labels, ref_emb, ref_labels.clamp(max=1) if ref_labels.is_floating_point() else ref_labels
        )


@breaks("every_default_device_will_do_to_mine", of=MINER_MUTANTS)
class MinesOnTheDefaultDevice(SoundMiner):
    def select(self, sim, pos, neg):
        return super().select(sim, pos, neg & torch.ones(sim.shape, dtype=torch.bool))


@breaks("float32_keeps_small_distances_among_large_ones_of_a_miner", of=MINER_MUTANTS)
class MinesByDistancesThatCancel(SoundMiner):
    def scores(self, embeddings, ref_emb):
        return DistancesCancel.similarity(self, embeddings, ref_emb)


class SoundSampler(Seeded, PairMiner):
    """Two negatives, drawn uniformly; nothing is wrong with it."""

    def get_default_distance(self):
        return LpDistance()

    def select(self, sim, pos, neg):
        k = torch.full_like(sim[..., :1], 2).long()
        return pos, sample(torch.zeros_like(sim), neg, k, self.generator(sim.device))


@breaks("indices_are_in_range", of=MINER_MUTANTS)
class IndicesOf32Bits(SoundMiner):
    def mine(self, *args):
        return tuple(index.int() for index in super().mine(*args))


@breaks("indices_are_in_range", of=MINER_MUTANTS)
class IndicesFromOne(SoundMiner):
    def mine(self, *args):
        return tuple(index + 1 for index in super().mine(*args))


@breaks("labels_agree", of=MINER_MUTANTS)
class SidesSwapped(SoundMiner):
    def mine(self, *args):
        a, p, b, n = super().mine(*args)
        return b, n, a, p


@breaks("no_sample_is_its_own_positive", of=MINER_MUTANTS)
class MinesSelfPairs(SoundMiner):
    def mine(self, embeddings, labels, ref_emb, ref_labels):
        return super().mine(embeddings, labels, ref_emb.view_as(ref_emb), ref_labels)


@breaks("no_pair_comes_twice", of=MINER_MUTANTS)
class MinesTwice(SoundMiner):
    def mine(self, *args):
        return tuple(torch.cat((index, index)) for index in super().mine(*args))


@breaks("batch_order_is_irrelevant", "anchors_are_independent", of=MINER_MUTANTS)
class FirstAnchorsOnly(SoundMiner):
    def select(self, sim, pos, neg):
        first = (torch.arange(len(sim)) < (len(sim) + 1) // 2).unsqueeze(1)
        return pos & first, neg & first


@breaks("label_names_are_irrelevant", of=MINER_MUTANTS)
class LabelsAbove0Only(SoundMiner):
    def mine(self, embeddings, labels, *args):
        a, p, b, n = super().mine(embeddings, labels, *args)
        return a[labels[a] > 0], p[labels[a] > 0], b, n


@breaks("references_are_indexed", of=MINER_MUTANTS)
class RowsAndColumnsSwapped(SoundMiner):
    def mine(self, *args):
        a, p, b, n = super().mine(*args)
        return p, a, n, b


@breaks("masks_and_indices_agree", of=MINER_MUTANTS)
class MasksOfEverything(SoundMiner):
    def mine(self, embeddings, labels, ref_emb, ref_labels):
        if self.as_masks:
            return PairMasks(*(torch.ones(len(labels), len(ref_labels), dtype=torch.bool) for _ in range(2)))
        return super().mine(embeddings, labels, ref_emb, ref_labels)


@breaks("negated_distance_agrees", of=MINER_MUTANTS)
def level_of_a_miner_without_its_sign():
    class LevelWithoutItsSign(SoundMiner):
        level = property(lambda self: self.base)

    return LevelWithoutItsSign(base=0.1)


@breaks("batch_is_not_written_to", of=MINER_MUTANTS)
class WritesToLabels(SoundMiner):
    def mine(self, embeddings, labels, ref_emb, ref_labels):
        labels += 0
        return super().mine(embeddings, labels, ref_emb, ref_labels)


@breaks("selection_is_a_subset", of=MINER_MUTANTS)
class EverythingIsPositive(SoundMiner):
    def select(self, sim, pos, neg):
        return ~neg, neg


@breaks("unselected_pairs_have_no_influence", of=MINER_MUTANTS)
class AboveTheMeanOfAll(SoundMiner):
    def select(self, sim, pos, neg):
        return pos, neg & (sim > sim.mean(-1, keepdim=True))


@breaks("something_is_mined", of=MINER_MUTANTS)
class MinesNothing(SoundMiner):
    def select(self, sim, pos, neg):
        return pos & False, neg & False


@breaks("empty_in_empty_out", of=MINER_MUTANTS)
def pml_batch_hard():
    return pml_miners.BatchHardMiner()


@breaks("copies_are_equal", of=MINER_MUTANTS)
class EverySecondTime(SoundMiner):
    calls = 0

    def select(self, sim, pos, neg):
        self.calls += 1
        return nearest(sim, pos, self.calls), neg


@breaks("a_seed_is_a_stream", of=MINER_MUTANTS)
class SeedsInTheHighBits(SoundSampler):
    """The CPU generator of torch takes the low 32 bits of a seed."""

    def generator(self, device):
        self._calls += 1
        return torch.Generator(device).manual_seed(((self.seed or 0) << 32) + self._calls)


@breaks("a_seed_is_a_stream", of=MINER_MUTANTS)
class SeedIgnored(SoundSampler):
    def generator(self, device):
        return None


@breaks("the_global_generator_is_the_default", of=MINER_MUTANTS)
class DrawsFromPython(SoundSampler):
    def generator(self, device):
        return torch.Generator(device).manual_seed(random.getrandbits(30))


@breaks("thresholds_change_no_pair", of=MINER_MUTANTS)
class AboveTheMeanOfTheBlock(SoundMiner):
    def select(self, sim, pos, neg):
        return in_row_blocks(lambda sim, pos, neg: (pos, neg & (sim >= sim.mean())), sim, pos, neg)
