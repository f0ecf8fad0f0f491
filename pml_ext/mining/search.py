"""Mining over a data set: for every anchor its positives and the hardest negatives that pass the filters, exactly."""

from typing import Literal

import torch
from pytorch_metric_learning.distances import BaseDistance, CosineSimilarity
from torch import nn

from pml_ext import _pml, arguments
from pml_ext.evaluation.knn import full_float32
from pml_ext.inputs import Array, checked_labels, class_ids
from pml_ext.miners.positive_aware import Reference
from pml_ext.mining import checks
from pml_ext.mining.chunks import Gathered, Rule, Search
from pml_ext.mining.scores import Scores
from pml_ext.mining.tuples import MinedTuples

Positives = Literal["hardest", "random", "easiest", "all"]
Strategy = Literal["top", "random"]
Per = Literal["anchor", "pair"]

# So many scores are held at once: 16 MB of float32, and a few times that beside them.
_SCORES = 1 << 22


@torch.no_grad()
def mine(
    embeddings: Array,
    labels: Array,
    *,
    references: Array | None = None,
    reference_labels: Array | None = None,
    anchors: Array | None = None,
    num_positives: int = 1,
    num_negatives: int = 5,
    positives: Positives = "hardest",
    strategy: Strategy = "top",
    range_min: int = 0,
    range_max: int | None = None,
    absolute_margin: float | None = None,
    relative_margin: float | None = None,
    max_score: float | None = None,
    min_score: float | None = None,
    reference: Reference = "max",
    per: Per = "anchor",
    one_per_class: bool = False,
    groups: Array | None = None,
    distance: nn.Module | None = None,
    chunk_size: int | None = None,
    candidates: Array | None = None,
    generator: torch.Generator | None = None,
) -> MinedTuples:
    r"""Mine tuples over a whole data set, exactly and in bounded memory.

        N'_i = k of { n : range_min <= rank_i(n) < range_max, min_score <= c_in < tau_i }
        tau_i = min(r_i - absolute_margin, r_i - relative_margin |r_i|, max_score),  r_i = max_{p in P_i} c_ip

    where rank_i counts the negatives of anchor i by falling score c_in from 0 on, before any filter. A margin excludes
    negatives that are as near as the positives: with incomplete labels these are mostly unlabeled positives. With clean
    labels they are the very errors to learn from, and a margin does harm.

    Args:
        embeddings: [n, d], computed in eval mode, in the order of the data set.
        labels: [n], numbers or strings.
        references: [m, d], where positives and negatives come from; None (default) for the embeddings themselves.
        reference_labels: [m].
        anchors: indices of the embeddings that are anchors; None (default) for all. Several processes can share the
            work: each mines a different part of the anchors, and `MinedTuples.joined` joins the parts.
        num_positives: how many positives of each anchor, default 1; 0 for negatives only.
        num_negatives: how many negatives of each anchor, default 5.
        positives: which ones: the ``"hardest"`` (default), ``"easiest"``, ``"random"`` ones, or ``"all"``, the
            hardest first.
        strategy: ``"top"`` (default) for the hardest negatives that pass the filters, or ``"random"`` for random ones
            of all that pass. For a large data set give `range_max` with it: without, all negatives of every anchor must
            be ranked.
        range_min: the rank of the first negative to consider, default 0. With a network that is not yet trained, the
            first ranks are noise.
        range_max: the rank before which negatives are considered; None (default) for no limit.
        absolute_margin: how much less similar than r_i a negative must be, at least 0; None (default) for none.
        relative_margin: the same as a share of |r_i|, at least 0: 0.05 keeps negatives with less than 95 % of a
            positive r_i. None (default) for none.
        max_score: an upper limit on the similarity of a negative, in the units of the distance (with a distance, the
            smallest allowed one); None (default) for none.
        min_score: a lower limit on the similarity of a negative, likewise; None (default) for none.
        reference: which positive gives r_i: the nearest (``"max"``, default) or the farthest (``"min"``), or ``"mean"``
            for the mean of their scores.
        per: ``"anchor"`` (default), or ``"pair"``: each positive of an anchor has its own limit tau_i, and so its own
            negatives; the anchor then occurs once for each positive.
        one_per_class: whether to take at most one negative of each class. Default False.
        groups: [n], integers: samples of one group are neither positives nor negatives of each other (near
            duplicates, frames of one video); -1 is no group.
        distance: any PML distance; default `CosineSimilarity`. Margins are differences of its values.
        chunk_size: the number of anchors at a time; by default as many as give 2^22 scores. The tuples do not depend on
            it, except by rounding with distances other than cosine and inner products.
        candidates: [n, k] or, with `anchors`, [a, k]: references to consider instead of all, for example from an
            approximate index, which need not use labels; -1 is none. Ranks are those among the candidates.
        generator: generator of the random draws; torch's global one by default.

    Shape:
        embeddings [n, d], labels [n] -> `MinedTuples` of one row for each anchor.

    Source:
        The limits are those of NV-Retriever (de Souza Moreira et al. 2024, arXiv 2407.15831), their names those of
        sentence-transformers' ``mine_hard_negatives``; `one_per_class` and mining anew during training are those of
        Radenovic et al. (ECCV 2016), random negatives of the first ranks those of ANCE (Xiong et al. 2021, arXiv
        2007.00808). Different: ranks count before the filters; the relative margin has the right sign for negative
        scores; a score equal to the limit is dropped; with several positives the nearest one counts by default, not the
        farthest; draws are a function of the generator, the anchor and the reference.

    Raises:
        TypeError, ValueError: arguments of other types or shapes; embeddings that are not finite; a range of ranks
            smaller than the number of negatives; margins or ``per="pair"`` without positives; groups with references.

    Example:
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> mine(embeddings, torch.tensor([0, 0, 1, 1]), num_negatives=2).negatives
        tensor([[2, 3],
                [2, 3],
                [1, 0],
                [1, 0]])
    """
    rule = Rule(
        num_positives=checks.count("num_positives", num_positives),
        num_negatives=arguments.count("num_negatives", num_negatives),
        positives=checks.choice("positives", positives, Positives),
        is_random=checks.choice("strategy", strategy, Strategy) == "random",
        range_min=checks.count("range_min", range_min),
        range_max=arguments.count("range_max", range_max, optional=True),
        absolute_margin=checks.optional(arguments.non_negative, "absolute_margin", absolute_margin),
        relative_margin=checks.optional(arguments.non_negative, "relative_margin", relative_margin),
        max_score=checks.optional(arguments.finite, "max_score", max_score),
        min_score=checks.optional(arguments.finite, "min_score", min_score),
        reference=checks.choice("reference", reference, Reference),
        of_pairs=checks.choice("per", per, Per) == "pair",
        one_per_class=arguments.flag("one_per_class", one_per_class),
    )
    if range_max is not None and range_max < range_min + num_negatives:
        raise ValueError(
            f"range_max must be at least range_min + num_negatives = {range_min + num_negatives}, got {range_max}"
        )
    if rule.of_pairs and rule.num_positives == 0 and rule.positives != "all":
        raise ValueError("per='pair' needs positives, got num_positives=0")
    if distance is not None and not isinstance(distance, BaseDistance):
        raise TypeError(f"distance must be a PML distance (a BaseDistance), got {distance!r}")
    distance = CosineSimilarity() if distance is None else distance
    _pml.describe(distance)
    chunk_size = arguments.count("chunk_size", chunk_size, optional=True)

    x = checks.vectors("embeddings", embeddings)
    given_labels = checked_labels("labels", labels, len(x))
    if references is None:
        if reference_labels is not None:
            raise ValueError("reference_labels was given without references")
        refs = None
        (ids,) = class_ids(given_labels)
        ref_ids = ids
    else:
        refs = checks.vectors("references", references).to(x)
        if refs.shape[1] != x.shape[1]:
            raise ValueError(
                f"references must have the dimension of the embeddings, got {refs.shape[1]} and {x.shape[1]}"
            )
        if reference_labels is None:
            raise ValueError("references need reference_labels, got None")
        if groups is not None:
            raise ValueError("groups must be None with references: they are those of one data set")
        ids, ref_ids = class_ids(given_labels, checked_labels("reference_labels", reference_labels, len(refs)))
    rows = checks.indices("anchors", anchors, len(x)) if anchors is not None else torch.arange(len(x), device="cpu")
    m = len(x) if refs is None else len(refs)
    seed = 0
    if rule.is_random or rule.positives == "random":
        device = generator.device if generator is not None else torch.device("cpu")
        seed = int(torch.randint(2**62, (), generator=generator, device=device))
    places = None if candidates is None else checks.candidates(candidates, len(rows), m)
    chunk = chunk_size or max(1, _SCORES // max(1, m if places is None else places.shape[1] * 8))

    with full_float32(x.device):
        search = Search(
            rule=rule,
            scores=Scores(distance, x, refs),
            sign=1.0 if distance.is_inverted else -1.0,
            ids=ids.to(x.device),
            ref_ids=ref_ids.to(x.device),
            groups=None if groups is None else checks.groups(groups, len(x)).to(x.device),
            is_own=refs is None,
            seed=seed,
        )
        found = Gathered(search.empty(), len(rows))
        for start in range(0, len(rows), chunk):
            some = None if places is None else places[start : start + chunk]
            found.add(search.chunk(rows[start : start + chunk].to(x.device), some))
    return search.tuples(found)
