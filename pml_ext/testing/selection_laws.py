"""Laws of miners at the edges: a miner that declares itself a function of rows, a single reference."""

from typing import Any

import torch

from pml_ext.miners.base import PairMiner
from pml_ext.testing.cases import Batch, Rows
from pml_ext.testing.law import law, selects_by_rows
from pml_ext.testing.miner_laws import mine


@law("miner", "rows", selects_by_rows)
def a_row_function_is_one(miner: PairMiner, case: Rows) -> None:
    """A miner with `is_row_function` selects row by row and without random draws, so that a loss may call it again."""
    sim, pos, neg = case.matrix
    torch.default_generator.manual_seed(0)
    before = torch.get_rng_state()
    whole = miner.select(sim, pos, neg)
    for size in (1, max(1, case.n - 1), case.n):
        blocks = [miner.select(*block) for block in zip(*(x.split(size) for x in (sim, pos, neg)), strict=True)]
        for name, mask, parts in zip(("positives", "negatives"), whole, zip(*blocks, strict=True), strict=True):
            assert torch.equal(torch.cat(parts), mask), f"other {name} in blocks of {size} rows"
    assert torch.equal(torch.get_rng_state(), before), "it draws from torch's global generator"


@law("miner", "once")
def a_single_reference_can_be_mined(miner: Any, case: Batch) -> None:
    """One reference, for one anchor and for several: indices in range, of the right classes."""
    for n in (1, 4):
        x, y, ref, ref_label = case.embeddings[:n], case.labels[:n], case.embeddings[-1:], case.labels[-1:]
        a, p, *rest = mine(miner, x, y, ref, ref_label)
        b, q = (a, rest[0]) if len(rest) == 1 else rest
        for anchors, others, alike in ((a, p, True), (b, q, False)):
            assert not others.any(), f"references {others.tolist()} of one"
            wrong = anchors[(y[anchors] == ref_label) != alike]
            assert not len(wrong), f"anchors {wrong.tolist()} with the reference on the wrong side"
