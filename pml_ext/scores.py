"""Scores of all pairs at once, for those who only select pairs."""

from torch import Tensor

from pml_ext.engine import Geometry, _Space


def scores(embeddings: Tensor, references: Tensor | None, geometry: Geometry) -> Tensor:
    """Scores as the engine computes them: embeddings [n, d], references [m, d] or None for the batch -> [n, m]."""
    space = _Space.of(geometry, embeddings, references, private=False)
    return space.symmetric_scores() if space.is_symmetric else space.scores(0, len(embeddings))
