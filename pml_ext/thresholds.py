"""Every number that chooses between two ways to the same result, and how to make them so small that a dozen samples do.

None of them changes a value by more than rounding. Code reads them where it decides (`thresholds.BLOCK_CPU`), so that a
test can put others in their place.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

# The engine: so many scores are computed at a time. On a CPU a block of them and its temporaries stay in a core's
# cache, a GPU is to be kept busy.
BLOCK_CPU = 1 << 17
BLOCK_GPU = 1 << 26
# But never fewer rows than these, as long as no chunk size asks for it.
BLOCK_ROWS = 32
# Rows of the blocks above the diagonal of symmetric scores, from three blocks on: long enough for the product, few
# enough to waste little.
SYMMETRIC_ROWS = 96
# A matrix of more numbers does not stay in the cache while its transpose is added to it: that is done in such rows.
MIRRORED = 1 << 19

# Distances: a square of up to so many roundings of the two squared lengths is computed again by differences, ...
NEAR_ROUNDINGS = 1024
# ... or, in single precision, in double precision with all others of its block, if there are more than this share.
NEAR_SHARE = 1 / 16

# Closed forms: positives are gathered to few columns if they are at most so many or this share of all columns. Of a
# small batch that takes no longer than to look for them in place, and more of the forms can work on them.
GATHERED_COLUMNS = 128
GATHERED_SHARE = 0.25
# Pair weights of few columns are added up one by one if these are at most so many or this share of all, in a product
# of full matrices if they are more: that is where the two take the same time.
FEW_COLUMNS = 8
FEW_SHARE = 1 / 16
# Of no more columns than these always in a product, which takes fewer calls.
FEW_FROM = 256
# So many scores of negatives, each beside a few positives, are compared with these at a time: few calls for a small
# batch, one positive after another where that many scores are a block.
TRIPLETS = 1 << 17
# With more positives than this, sorting the negatives is cheaper than comparing with each positive.
BATCH_ALL_POSITIVES = 64
SEMI_HARD_POSITIVES = 128
# So many scores of a histogram, and so many triplets of the soft triplet loss, at a time.
HISTOGRAM_BLOCK = 1 << 16
SOFT_TRIPLETS = 1 << 20
# Slopes of ranks are kept for the second pass over the positives of a block if they are at most so many.
RANK_SLOPES = 1 << 21

# Pairs: of index tuples masks are made once if these have at most so many numbers, else for every block of rows.
INDEXED_MASKS = 1 << 26
# So many scores of a selection at a time.
SELECTION_BLOCK = 1 << 18
# From so many pairs on, labels that float32 tells apart are compared as float32.
FLOAT_LABELS = 1 << 15
# The k largest of a row are looked for among the k groups of so many columns with the largest maxima, if there are
# at least so many groups for each of the k.
GROUP = 4
GROUPS_FOR_EACH = 2
# Up to this length sorting a row is cheaper than counting 32 times.
SORTED_LENGTH = 128
# Counting triplets needs several index matrices of 8 bytes a number: so many rows at a time bound their size.
TRIPLET_ROWS = 512

# Draws: for fewer numbers than these, noise and order cost no more than a search.
SEARCHED_NUMBERS = 1 << 15
# From so many columns on, first a group of them is drawn, then the column.
GROUPED_COLUMNS = 512

# k-means: with at most so many points for each center it is cheaper to begin with the distances between all of them.
POINTS_PER_CENTER = 8
# Classes come together if the largest is less than so many times as large as the smallest.
CLASS_SIZE_RATIO = 4

# Evaluation: rows and columns of a tile of distances: two of them, 800 KB of float32, stay in the second cache of a
# core, which is what makes comparisons cheap beside the product; a GPU wants longer kernels.
TILE_CPU = 320
TILE_GPU = 4096
# So many distances are held at once: 64 MB of float32.
DISTANCES = 1 << 24
# A squared distance below this share of the two squared norms has lost digits in the expansion: its relative error is
# about 1e-7 over the share. It is computed again, by differences.
NEAR = 1e-4
# From so many near pairs on they are expanded in double precision; below this share of the squared norms that has lost
# digits, too, and the differences are squared.
EXPANDED = 1 << 12
NEAR_DOUBLE = 1e-6
NEAR_FEW = 16  # such pairs of a row, up to which that is not put off
# So many distances of near pairs are computed again at a time.
NEAR_DISTANCES = 1 << 18
# The k smallest distances are looked for in groups of so many columns first.
COLUMNS_FOR_EACH = 16
# From so many matches on, more for many dimensions, selecting the nearest others is faster than counting.
COUNTED_MATCHES = 8
# So many distances are selected from at a time, but not of fewer rows than these: in the cache, long enough for the
# product.
SELECTED = 1 << 20
SELECTED_ROWS = 64
# So many draws of a bootstrap at a time: 64 MB.
DRAWS = 1 << 23

# Several processes: scores of a loss of all pairs that are held at once, and computed again. Up to so many of the whole
# batch every process computes all of them, which takes a third of the time, but for a histogram.
SUMMED_SCORES = 1 << 20
SUMMED_FROM = 1 << 22

# Stock losses: scores of the rows that are worked on at a time.
STOCK_BLOCK = 1 << 17
# A list of the columns of one's own class is cheaper than a mask if they are at most this share of all.
STOCK_OWN_SHARE = 0.25
# Times the number of scores from which a form pays, below which PML's own runs.
STOCK_PAYS = 1
# From so many positives on the triplets of a pair are looked up instead of compared one by one.
STOCK_POSITIVES = 64
# PML's own runs where lists make it work on fewer numbers than this share of the scores.
STOCK_LISTED = 1 / 8

# Whether numbers on the CPU may be looked at, because nothing waits for it; False to compute as on a device.
LOOKS = True

TINY: dict[str, float] = {
    "BLOCK_CPU": 1,
    "BLOCK_GPU": 1,
    "BLOCK_ROWS": 3,
    "SYMMETRIC_ROWS": 2,
    "MIRRORED": 1,
    "NEAR_ROUNDINGS": 1 << 51,  # grows: in double precision half of all pairs are near
    "NEAR_SHARE": 1 / 16,
    "GATHERED_COLUMNS": 0,
    "GATHERED_SHARE": 0.25,
    "FEW_COLUMNS": 2,
    "FEW_SHARE": 1 / 16,
    "FEW_FROM": 1,
    "TRIPLETS": 24,
    "BATCH_ALL_POSITIVES": 1,
    "SEMI_HARD_POSITIVES": 1,
    "HISTOGRAM_BLOCK": 16,
    "SOFT_TRIPLETS": 64,
    "RANK_SLOPES": 16,
    "SUMMED_SCORES": 30,
    "SUMMED_FROM": 0,
    "STOCK_BLOCK": 20,
    "STOCK_PAYS": 0,
    "STOCK_LISTED": 0,
    "STOCK_POSITIVES": 1,
    "STOCK_OWN_SHARE": 0.6,  # grows: small classes of a small batch, too
    "INDEXED_MASKS": 128,
    "SELECTION_BLOCK": 16,
    "FLOAT_LABELS": 1,
    "GROUP": 2,
    "GROUPS_FOR_EACH": 1,
    "SORTED_LENGTH": 1,
    "TRIPLET_ROWS": 2,
    "SEARCHED_NUMBERS": 1,
    "GROUPED_COLUMNS": 4,
    "POINTS_PER_CENTER": 0,
    "CLASS_SIZE_RATIO": 2,
    "TILE_CPU": 3,
    "TILE_GPU": 3,
    "DISTANCES": 64,
    "NEAR": 0.1,  # grows: ordinary pairs are near ones, too
    "EXPANDED": 2,
    "NEAR_DOUBLE": 1e-3,
    "NEAR_FEW": 1,
    "NEAR_DISTANCES": 4,
    "COLUMNS_FOR_EACH": 2,
    "COUNTED_MATCHES": 2,
    "SELECTED": 32,
    "SELECTED_ROWS": 2,
    "DRAWS": 32,
}


@contextmanager
def replaced(**values: float) -> Iterator[None]:
    """Other thresholds until the end of the block, in all threads.

    Args:
        values: by name.

    Raises:
        ValueError: there is no threshold of that name.

    Example:
        >>> from pml_ext import thresholds
        >>> with thresholds.replaced(SYMMETRIC_ROWS=2):
        ...     print(thresholds.SYMMETRIC_ROWS)
        2
    """
    known = (*TINY, "LOOKS")
    unknown = values.keys() - set(known)
    if unknown:
        raise ValueError(f"no threshold is called {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    before = {name: globals()[name] for name in values}
    globals().update(values)
    try:
        yield
    finally:
        globals().update(before)


def tiny() -> AbstractContextManager[None]:
    """All of them so small that a dozen samples fall into several blocks, groups and fall-backs."""
    return replaced(**TINY)


def as_on_a_device() -> AbstractContextManager[None]:
    """All of them tiny, and the CPU as a device for whose numbers one would have to wait."""
    return replaced(**TINY, LOOKS=False)
