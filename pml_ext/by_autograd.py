"""The way without the engine: losses by ordinary autograd, any distance; and what an anchor without pairs costs.

The engine asks for the derivative of a block of scores where a loss has no closed form, and for all losses where
somebody wants a derivative of the derivative.
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pml_ext.masked import Counted, Needs, all_known, substitute, unknown
from pml_ext.pairs import Pairs
from pml_ext.similarity import disabled, is_enabled

# Scores, positives and negatives [b, m] -> losses [b], and to the whole batch one [].
PerAnchor = Callable[[Tensor, Tensor, Tensor], Tensor | Counted]
PerBatch = Callable[[Tensor, Tensor, Tensor], Tensor]
# Embeddings [n, d] and references [m, d], None for the batch -> scores [n, m].
Scores = Callable[[Tensor, Tensor | None], Tensor]


def plain_rows(
    scores: Scores,
    pairs: Pairs,
    per_anchor: PerAnchor,
    needs: Needs,
    chunk_size: int | None,
    embeddings: Tensor,
    ref: Tensor | None,
) -> Counted:
    """Losses and counts of all anchors; in chunks under checkpointing."""
    n = len(embeddings)
    # A chunk is computed again in the backward pass, in the same way.
    switch = nullcontext if is_enabled() else disabled

    def block(rows: Tensor, refs: Tensor | None, start: int) -> Counted:
        with switch():
            sim = scores(rows, refs)
        return defined_losses(per_anchor, sim, *pairs.masks(sim, start), needs)

    if chunk_size is None or chunk_size >= n:
        return block(embeddings, ref, 0)
    refs = embeddings if ref is None else ref
    blocks = [
        checkpoint(block, rows, refs, start, use_reentrant=False, preserve_rng_state=False)
        for rows, start in zip(embeddings.split(chunk_size), range(0, n, chunk_size), strict=True)
    ]
    return Counted(*(torch.cat(part) for part in zip(*blocks, strict=True)))


def plain_batch(
    scores: Scores, pairs: Pairs, per_batch: PerBatch, needs: Needs, embeddings: Tensor, ref: Tensor | None
) -> Counted:
    """The loss of all pairs in equal parts [n], one for each anchor."""
    sim = scores(embeddings, ref)
    loss, n = defined_loss(per_batch, sim, *pairs.masks(sim, 0), needs), len(embeddings)
    return Counted((loss / n).expand(n), torch.ones(n, dtype=torch.long, device=loss.device))


def defined_losses(per_anchor: PerAnchor, sim: Tensor, pos: Tensor, neg: Tensor, needs: Needs) -> Counted:
    """Losses and counts of some anchors from their scores and masks. Undefined anchors have 0 and 0."""
    sim, pos, neg, defined = substitute(sim, pos, neg, needs)
    known = all_known(sim)
    if not known:  # the gradient of a pair that is not selected is 0 times its score somewhere
        sim = torch.where(pos | neg, sim, 0.0)
    result = per_anchor(sim, pos, neg)
    losses, counts = result if isinstance(result, Counted) else (result, defined.long())
    losses, counts = torch.where(defined, losses, 0.0), torch.where(defined, counts, 0)
    return Counted(losses if known else losses + unknown(sim), counts)


def defined_loss(per_batch: PerBatch, sim: Tensor, pos: Tensor, neg: Tensor, needs: Needs) -> Tensor:
    """The loss of all pairs from their scores and masks [n, m]; 0 if it is not defined."""
    # All pairs are one row here: a batch that is not defined keeps (0, 0) as its positive, (0, 1) as its negative.
    flat, *masks, defined = substitute(sim.flatten(), pos.flatten(), neg.flatten(), needs)
    known = all_known(flat)
    if not known:
        flat = torch.where(masks[0] | masks[1], flat, 0.0)
    loss = torch.where(defined, per_batch(*(x.view(sim.shape) for x in (flat, *masks))), 0.0)
    return loss if known else loss + unknown(flat)
