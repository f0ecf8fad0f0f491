"""Hypothesis strategies for the cases of the laws. Every regime that they must reach is asserted by a test."""

from hypothesis import strategies as st

from pml_ext.testing.cases import Batch, Rows

_SEEDS = st.integers(0, 2**16)


def rows(inverted: bool = True) -> st.SearchStrategy[Rows]:
    """Pair matrices: full, sparse and empty masks, one-sided ones, random, repeated and all-equal scores."""
    return st.builds(
        Rows,
        n=st.integers(1, 4),
        m=st.integers(2, 8),
        scores=st.sampled_from(("random", "random", "grid", "equal")),
        density=st.sampled_from((0.9, 1.0, 0.3, 0.0)),
        balance=st.sampled_from((0.5, 0.2, 0.8, 0.0, 1.0)),
        inverted=st.just(inverted),
        seed=_SEEDS,
    )


def class_sizes(max_classes: int = 4) -> st.SearchStrategy[tuple[int, ...]]:
    """Sizes of classes, at most 12 samples together: balanced, unbalanced, one class, all labels different."""
    balanced = st.builds(lambda c, k: (k,) * c, st.integers(1, max_classes), st.integers(1, 3))
    return balanced | st.lists(st.integers(1, 4), min_size=1, max_size=max_classes).map(tuple).filter(
        lambda sizes: sum(sizes) <= 12
    )


def batches(dimension: int | None = None) -> st.SearchStrategy[Batch]:
    """Batches of 1 to 12 samples: any class sizes, equal and zero embeddings, short and long ones, references.

    Args:
        dimension: of the embeddings; by default drawn, 3 to 6. Among normalized vectors of two dimensions some pairs
            are so close that the gradient of their distance keeps few digits, however it is computed.
    """
    return st.builds(
        Batch,
        sizes=class_sizes(),
        dimension=st.integers(3, 6) if dimension is None else st.just(dimension),
        layout=st.sampled_from(("random", "random", "random", "duplicates", "collapsed", "zeros")),
        scale=st.sampled_from((1.0, 1.0, 1e-3, 30.0)),
        ref_sizes=st.just(()) | class_sizes(),
        seed=_SEEDS,
    )
