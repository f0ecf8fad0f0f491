"""Every loss as its formula stands in the paper, for one anchor, in plain Python: no tensors and no masks.

An oracle takes the distances, or the similarities, whichever the loss's own distance gives, of the anchor to its
positives and to its negatives, and returns the loss, or (sum, count) where the batch is the sum over the count. What
the loss holds constant in its backward pass is computed from `frozen`, the same two lists where the gradient is taken.
"""

import math
from statistics import fmean, pstdev
from typing import NamedTuple

from pml_ext import losses, miners

OF_ANCHORS, OF_PAIRS, OF_SAMPLES, OF_MINERS = {}, {}, {}, {}


def of_anchor(cls):
    """Enter the formula of one anchor: f(positives, negatives, **hyperparameters)."""
    return lambda oracle: OF_ANCHORS.setdefault(cls, oracle)


def of_pairs(cls):
    """Enter the formula of a whole batch: f(matrix, pos, neg, **hyperparameters), where pos and neg are of (i, j)."""
    return lambda oracle: OF_PAIRS.setdefault(cls, oracle)


def of_samples(cls):
    """Enter the formula of points with labels: f(points, labels, **hyperparameters)."""
    return lambda oracle: OF_SAMPLES.setdefault(cls, oracle)


def of_miner(cls):
    """Enter the rule of one anchor: f(positives, negatives, **hyperparameters) -> indices that are kept, or a Draw."""
    return lambda oracle: OF_MINERS.setdefault(cls, oracle)


def sp(x):
    return max(x, 0) + math.log1p(math.exp(-abs(x)))


def relu(x):
    return max(x, 0.0)


def lse(values):
    top = max(values)
    return top + math.log(sum(math.exp(v - top) for v in values))


def mean(values):
    return fmean(values) if values else 0.0


@of_anchor(losses.RAWLoss)
def raw(pos, neg, alpha, beta, gamma, epsilon):
    pull = [math.exp(-alpha * (s - gamma)) for s in pos if s < max(neg) + epsilon]
    push = [math.exp(beta * (s - gamma)) for s in neg if s > min(pos) - epsilon]
    return math.log(1 + sum(pull)) / alpha + math.log(1 + sum(push)) / beta


@of_anchor(losses.MultiSimilarityLoss)
def multi_similarity(pos, neg, alpha, beta, base):
    pull = math.log(1 + sum(math.exp(-alpha * (s - base)) for s in pos)) / alpha
    return pull + math.log(1 + sum(math.exp(beta * (s - base)) for s in neg)) / beta


@of_anchor(losses.BatchAllTripletLoss)
def batch_all_triplet(pos, neg, margin):
    active = [p - n + margin for p in pos for n in neg if p - n + margin > 0]
    return sum(active), len(active)


@of_anchor(losses.BatchHardTripletLoss)
def batch_hard_triplet(pos, neg, margin):
    z = max(pos) - min(neg)
    loss = sp(z) if margin is None else relu(z + margin)
    return loss, 1


@of_anchor(losses.EasyPositiveTripletLoss)
def easy_positive_triplet(pos, neg, margin):
    return relu(min(pos) - min(neg) + margin)


@of_anchor(losses.SemiHardTripletLoss)
def semi_hard_triplet(pos, neg, margin):
    chosen = [min((n for n in neg if n > p), default=max(neg)) for p in pos]
    return sum(relu(p - n + margin) for p, n in zip(pos, chosen, strict=True)), len(pos)


@of_anchor(losses.SoftTripletLoss)
def soft_triplet(pos, neg, beta, threshold, normalization):
    kept = [t for t in (sp(beta * (p - n)) for p in pos for n in neg) if t > threshold]
    counts = {"anchor": 1 if kept else 0, "triplet": len(kept), "legacy": len(kept)}
    return sum(kept) if normalization == "triplet" else mean(kept), counts[normalization]


@of_anchor(losses.BinomialDevianceLoss)
def binomial_deviance(pos, neg, alpha, beta, base, scale, balance):
    pull = mean([sp(-alpha * (s - base)) for s in pos]) / alpha
    push = mean([sp(beta * (s - base)) for s in neg]) * balance / beta
    return scale * (pull + push)


def _level(pos, neg, base, adaptivity):
    spread = pstdev(pos) + pstdev(neg)
    middle = (mean(pos) + mean(neg)) / 2
    crossing = (pstdev(neg) * mean(pos) + pstdev(pos) * mean(neg)) / spread if spread > 1e-12 else middle
    return adaptivity * crossing + (1 - adaptivity) * base


@of_anchor(losses.AdaptiveBinomialDevianceLoss)
def adaptive_binomial_deviance(pos, neg, alpha, beta, epsilon, base, adaptivity, scale, frozen):
    level, hard = _level(*frozen, base, adaptivity), [s for s in neg if s > min(pos) - epsilon]
    pull = mean([sp(-alpha * (s - level)) for s in pos]) / alpha
    return scale * (pull + mean([sp(beta * (s - level)) for s in hard]) / beta) if hard else 0.0


@of_anchor(losses.LinearPullDevianceLoss)
def linear_pull_deviance(pos, neg, beta, epsilon, base, adaptivity, balance, frozen):
    level, hard = _level(*frozen, base, adaptivity), [s for s in neg if s > min(pos) - epsilon]
    if not hard:
        return 0.0
    pull = mean([level - s for s in pos if s < max(hard) + epsilon])
    return pull + balance * mean([sp(beta * (s - level)) for s in hard]) / beta


@of_anchor(losses.RankedPullDevianceLoss)
def ranked_pull_deviance(pos, neg, margins, alphas, beta, base, sharp):
    ranks = zip(sorted(pos), margins, alphas, strict=False)
    pull = mean([sp((a if sharp else 1) * (d - base + margin)) / a for d, margin, a in ranks])
    return pull + mean([sp(beta * (base - d)) for d in neg]) / beta


@of_anchor(losses.AnchorContrastiveLoss)
def anchor_contrastive(pos, neg, pos_margin, neg_margin, average, step):
    total = mean if average else sum
    push = [neg_margin - d + step if d < neg_margin else 0.0 for d in neg]
    return total([relu(d - pos_margin) for d in pos]) + total(push)


@of_anchor(losses.LogSumExpPairLoss)
def log_sum_exp_pair(pos, neg, alpha, beta, pos_margin, neg_margin, scale, bounded):
    pull, push = lse([alpha * (d - pos_margin) for d in pos]), lse([beta * (neg_margin - d) for d in neg])
    bound = sp if bounded else float
    return scale * (bound(pull) / alpha + bound(push) / beta)


@of_anchor(losses.GeneralizedLiftedStructureLoss)
def generalized_lifted_structure(pos, neg, neg_margin, pos_margin):
    return relu(lse([d - pos_margin for d in pos]) + lse([neg_margin - d for d in neg]))


@of_anchor(losses.PairWeightedLoss)
def pair_weighted_raw(pos, neg, alpha, beta, gamma, epsilon, frozen):
    """With the weights of RAW, from the two pictures of them in the paper."""
    pos_0, neg_0 = frozen
    hard_pos, hard_neg = [s < max(neg_0) + epsilon for s in pos_0], [s > min(pos_0) - epsilon for s in neg_0]

    def weighted(now, then, hard, slope):
        # The score that moves, times a weight from the scores that do not.
        total = 0.0
        for score, own, is_hard in zip(now, then, hard, strict=True):
            relative = sum(math.exp(slope * (own - s)) for s, h in zip(then, hard, strict=True) if h)
            total += score / (relative + math.exp(slope * (own - gamma))) if is_hard else 0.0
        return total

    return weighted(neg, neg_0, hard_neg, -beta) - weighted(pos, pos_0, hard_pos, alpha)


@of_anchor(losses.ClampedNCALoss)
def clamped_nca(pos, neg, pos_margin, neg_margin):
    return lse([-min(d, neg_margin) for d in neg]) - lse([-max(d, pos_margin) for d in pos])


def _neighbors(pos, neg, k):
    everything = sorted(pos + neg)
    limit = everything[k] if k is not None and k < len(everything) else math.inf
    return [d for d in pos if d < limit] or [min(pos)], [d for d in neg if d < limit]


@of_anchor(losses.KNNSoftmaxLoss)
def knn_softmax(pos, neg, alpha, k, negative_weight):
    near_pos, near_neg = _neighbors(pos, neg, k)
    pull = sum(math.exp(-alpha * d) for d in near_pos)
    return -math.log(pull / (pull + negative_weight * sum(math.exp(-alpha * d) for d in near_neg)))


@of_anchor(losses.DecoupledNCALoss)
def decoupled_nca(pos, neg, alpha, beta, k, frozen):
    (near_pos, near_neg), (pos_0, neg_0) = _neighbors(pos, neg, k), _neighbors(*frozen, k)
    if not near_neg:
        return 0.0
    s_pos, s_neg = (sum(math.exp(-alpha * d) for d in side) for side in (pos_0, neg_0))
    pull = alpha / beta * lse([-beta * d for d in near_pos]) if beta else -alpha * (1 + mean(near_pos))
    return s_neg / (s_pos + s_neg) * (lse([-alpha * d for d in near_neg]) - pull)


@of_anchor(losses.LargeMarginNearestNeighborLoss)
def large_margin_nearest_neighbor(pos, neg, k, margin):
    targets = sorted(pos)[:k]
    impostors = [d for d in neg if d < max(targets) + margin]
    return mean(targets) - mean(impostors) + margin if impostors else 0.0


@of_pairs(losses.LiftedStructureLoss)
def lifted_structure(d, pos, neg, neg_margin, pos_margin):
    def j(i, j):
        of_both = [neg_margin - d[a][k] for a in (i, j) for k in range(len(d)) if (a, k) in neg]
        return d[i][j] - pos_margin + lse(of_both) if of_both else 0.0

    once = [(a, b) for a, b in pos if a < b]
    return sum(relu(j(a, b)) ** 2 for a, b in once) / (2 * len(once))


@of_pairs(losses.HistogramLoss)
def histogram(s, pos, neg, n_bins, center):
    nodes = [center - 1 + 2 * r / n_bins for r in range(n_bins + 1)]

    def density(pairs):
        return [mean([relu(1 - abs(s[i][j] - t) * n_bins / 2) for i, j in pairs]) for t in nodes]

    h_pos, h_neg = density(pos), density(neg)
    return sum(h_neg[r] * sum(h_pos[: r + 1]) for r in range(n_bins + 1))


@of_pairs(losses.MeanGapLoss)
def mean_gap(d, pos, neg, fraction):
    r = math.floor(fraction * len(pos) + 1e-6)
    near_pos, near_neg = (sorted(d[i][j] for i, j in side)[:r] for side in (pos, neg))
    return mean([x for x in near_pos if x > mean(near_neg)]) - mean([x for x in near_neg if x < mean(near_pos)])


@of_samples(losses.CenterLoss)
def center(points, labels, num_classes, embedding_size, alpha):
    return mean([sum(x * x for x in point) / 2 for point in points])  # centers start at the origin


@of_samples(losses.ClassCenterMarginLoss)
def class_center_margin(points, labels, center_margin, sample_margin):
    points = [[x / math.hypot(*point) for x in point] for point in points]
    members = {k: [p for p, label in zip(points, labels, strict=True) if label == k] for k in set(labels)}
    centers = {k: [mean(axis) for axis in zip(*group, strict=True)] for k, group in members.items()}
    gaps = [min((math.dist(c, other) for o, other in centers.items() if o != k), default=9) for k, c in centers.items()]
    radii = [max(math.dist(p, centers[k]) for p in group) for k, group in members.items()]
    return sum(relu(center_margin - gap) for gap in gaps) + sum(relu(radius - sample_margin) for radius in radii)


@of_anchor(losses.DecoupledContrastiveLoss)
def decoupled_contrastive(pos, neg, temperature):
    return lse([s / temperature for s in neg]) - mean([s / temperature for s in pos])


@of_anchor(losses.HardnessWeightedContrastiveLoss)
def hardness_weighted_contrastive(pos, neg, temperature, alpha, frozen):
    push = lse([s / temperature + alpha * then for s, then in zip(neg, frozen[1], strict=True)])
    return mean([sp(push - s / temperature) for s in pos])


@of_anchor(losses.HardNegativeContrastiveLoss)
def hard_negative_contrastive(pos, neg, temperature, beta, tau_plus, detach, farthest, frozen):
    def tilted(now, then):
        weights = [math.exp(beta * s / temperature) for s in (then if detach else now)]
        return sum(w * math.exp(s / temperature) for w, s in zip(weights, now, strict=True)) / sum(weights)

    true = (tilted(neg, frozen[1]) - tau_plus * tilted(pos, frozen[0])) / (1 - tau_plus)
    g = len(neg) * max(true, math.exp(farthest / temperature))
    return mean([math.log(1 + g / math.exp(s / temperature)) for s in pos])


@of_anchor(losses.SelectivelyContrastiveTripletLoss)
def selectively_contrastive_triplet(pos, neg, temperature, lam, level):
    p, n = max(pos), max(neg)
    return lam * n if n > p or (level is not None and n > level) else sp((n - p) / temperature)


def logistic(x):
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def _step(temperature):
    return lambda x: logistic(x / temperature)


def _rising(temperature, rho, delta, start, offset):
    base = start + logistic(delta / temperature) if offset is None else offset
    return lambda x: base + rho * (x - delta) if x > delta else logistic(x / temperature) + (start if x > 0 else 0)


def _ahead_and_before(pos, neg, plus, minus):
    """For each positive how many others are before it, and how many negatives."""
    others = [[j for j in range(len(pos)) if j != p] for p in range(len(pos))]
    ahead = [sum(plus(pos[j] - s) for j in others[p]) for p, s in enumerate(pos)]
    return ahead, [sum(minus(k - s) for k in neg) for s in pos]


def _exact(x):
    return 1.0 if x >= 0 else 0.0


@of_anchor(losses.SmoothAPLoss)
def smooth_ap(pos, neg, temperature):
    ahead, before = _ahead_and_before(pos, neg, _step(temperature), _step(temperature))
    return 1 - mean([(1 + a) / (1 + a + b) for a, b in zip(ahead, before, strict=True)])


@of_anchor(losses.SupAPLoss)
def sup_ap(pos, neg, temperature, rho, delta, start, offset):
    ahead, before = _ahead_and_before(pos, neg, _exact, _rising(temperature, rho, delta, start, offset))
    return 1 - mean([(1 + a) / (1 + a + b) for a, b in zip(ahead, before, strict=True)])


@of_anchor(losses.RecallAtKLoss)
def recall_at_k(pos, neg, k, temperature, k_temperature, ranks):
    upper = ranks == "upper"
    minus = _rising(temperature, 100, 0.05, 0.5, None) if upper else _step(temperature)
    ahead, before = _ahead_and_before(pos, neg, _exact if upper else _step(temperature), minus)
    found = [sum(logistic((q - 1 - a - b) / k_temperature) for a, b in zip(ahead, before, strict=True)) for q in k]
    shares = [(f if upper else min(q, f)) / min(q, len(pos)) for q, f in zip(k, found, strict=True)]
    return 1 - mean(shares)


@of_anchor(losses.PNPLoss)
def pnp(pos, neg, b, alpha, temperature, variant):
    _, before = _ahead_and_before(pos, neg, _exact, _step(temperature))
    cost = {
        "O": lambda x: x,
        "Iu": lambda x: (1 + x) * math.log(1 + x),
        "Ib": lambda x: (b * x - math.log(1 + b * x)) / b**2,
        "Ds": lambda x: math.log(1 + x),
        "Dq": lambda x: 1 - 1 / (1 + x) ** alpha,
    }[variant]
    return mean([cost(x) for x in before])


@of_samples(losses.SigmoidPairLoss)
def sigmoid_pair(points, labels, temperature, bias, max_temperature, reduction):
    points = [[x / math.hypot(*point) for x in point] for point in points]
    pairs = [(i, j) for i in range(len(points)) for j in range(len(points)) if i != j]
    same = [labels[i] == labels[j] for i, j in pairs]
    if bias == "prior":
        bias = math.log(sum(same) / (len(pairs) - sum(same))) if 0 < sum(same) < len(pairs) else 0.0
    slope, total = min(temperature, max_temperature), 0.0
    for i in range(len(points)):
        logits = [
            (slope * sum(x * y for x, y in zip(points[i], points[j], strict=True)) + bias, labels[i] == labels[j])
            for j in range(len(points))
            if j != i
        ]
        pull, push = sum(sp(-z) for z, is_pos in logits if is_pos), sum(sp(z) for z, is_pos in logits if not is_pos)
        count = max(1, sum(is_pos for _, is_pos in logits))
        total += {"sum": pull + push, "positives": (pull + push) / count, "mean": pull / count + push}[reduction]
    return total / len(points)


class Draw(NamedTuple):
    """What a miner draws: k of the "pos" or of the "neg", one after another, in proportion to these weights."""

    side: str
    weights: list
    k: int


@of_miner(miners.ChainedMiner)
def no_miners(pos, neg):
    return list(range(len(pos))), list(range(len(neg)))


@of_miner(miners.HardNegativePairMiner)
def hard_negative_pair(pos, neg, epsilon):
    hard = [j for j, s in enumerate(neg) if pos and s > min(pos) - epsilon]
    return list(range(len(pos))) if hard else [], hard


@of_miner(miners.PositiveAwareMiner)
def positive_aware(
    pos, neg, absolute_margin, relative_margin, max_score, min_score, range_min, range_max, k, reference
):
    if not pos:
        return [], []
    r = {"max": max(pos), "min": min(pos), "mean": mean(pos)}[reference]
    ceiling = math.inf if max_score is None else max_score
    if absolute_margin is not None:
        ceiling = min(ceiling, r - absolute_margin)
    if relative_margin is not None:
        ceiling = min(ceiling, r - relative_margin * abs(r))
    ranked = sorted(range(len(neg)), key=lambda j: -neg[j])[range_min:range_max]
    kept = [j for j in ranked if neg[j] < ceiling and (min_score is None or neg[j] >= min_score)][:k]
    return list(range(len(pos))) if kept else [], sorted(kept)


@of_miner(miners.AmbiguousNegativeMiner)
def ambiguous_negative(pos, neg, k, a, b, reference):
    r = {"max": max(pos), "min": min(pos), "mean": mean(pos)}[reference]
    return Draw("neg", [math.exp(-a * (s - r - b) ** 2) for s in neg], k)


@of_miner(miners.KNearestPositiveMiner)
def k_nearest_positive(pos, neg, k):
    return sorted(sorted(range(len(pos)), key=lambda j: pos[j])[:k]), list(range(len(neg)))


@of_miner(miners.KNearestNegativeMiner)
def k_nearest_negative(pos, neg, k):
    return list(range(len(pos))), sorted(sorted(range(len(neg)), key=lambda j: neg[j])[:k])


@of_miner(miners.InverseDensityMiner)
def inverse_density(pos, neg, num_negatives, per_positive, max_z):
    if num_negatives is None and per_positive is None:
        per_positive = 1
    mu, sigma = mean(neg), pstdev(neg)
    z = [min(abs(d - mu) / sigma, max_z or math.inf) if sigma else 0.0 for d in neg]
    return Draw("neg", [math.exp(x * x / 2) for x in z], (num_negatives or 0) + (per_positive or 0) * len(pos))


@of_miner(miners.ExponentialPositiveMiner)
def exponential_positive(pos, neg, num_positives, scale):
    return Draw("pos", [math.exp(scale * s) for s in pos], num_positives)


@of_miner(miners.DistanceWeightedMiner)
def distance_weighted(pos, neg, cutoff, nonzero_loss_cutoff, dimension):
    near = [d < (nonzero_loss_cutoff or math.inf) for d in neg]
    if not any(near):
        return Draw("neg", [1.0] * len(neg), len(pos))
    c = [max(d, cutoff) for d in neg]
    density = [x ** (dimension - 2) * (1 - x * x / 4) ** ((dimension - 3) / 2) for x in c]
    return Draw("neg", [n / q for n, q in zip(near, density, strict=True)], len(pos))
