"""Any loss, on the pairs that a miner selects."""

from typing import Any, ClassVar, final

from pytorch_metric_learning.miners import BaseMiner
from torch import Tensor, nn
from typing_extensions import Unpack

from pml_ext import _pml, arguments
from pml_ext.base import MatrixLoss
from pml_ext.hyperparameters import WrapperArguments
from pml_ext.miners.base import PairMiner
from pml_ext.pairs import IndicesTuple, Narrowed, Pairs
from pml_ext.similarity import has_own_shapes
from pml_ext.wrappers.base import LossWrapper, handed_on, refuses_indices, runs_by_rows


@final
class MinedLoss(LossWrapper):
    r"""Combines a loss and a miner into one loss: mines the batch, with references if given, then computes the loss.

        L = L'(x, y, indices_tuple = miner(x, y))

    The result can be used in another wrapper. Between a miner and a loss of this package the pairs are passed as masks,
    without a conversion to index tensors.

    Args:
        loss: a PML loss that takes an `indices_tuple`.
        miner: a PML miner.
        kwargs: those of `LossWrapper`.

    Shape:
        embeddings [n, d], labels [n] -> a scalar.

    Defaults:
        Distance and reducer of the inner loss; the miner has a distance of its own.

    Source:
        Ours; it computes `loss(x, y, miner(x, y))`, as PML's trainers do.

    Raises:
        TypeError, ValueError: a loss that is not a PML loss or takes no pairs, a miner that is not a PML miner; in a
            call, an `indices_tuple`, or no labels.

    Example:
        >>> import torch
        >>> from pml_ext.losses import BinomialDevianceLoss
        >>> from pml_ext.miners import HardNegativePairMiner
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> MinedLoss(BinomialDevianceLoss(), HardNegativePairMiner())(embeddings, labels)
        tensor(0.5589)
    """

    takes_indices: ClassVar[bool] = False

    def __init__(self, loss: nn.Module, miner: nn.Module, **kwargs: Unpack[WrapperArguments]) -> None:
        super().__init__(loss, **kwargs)
        if refuses_indices(loss):
            raise TypeError(f"loss must take an indices_tuple, {type(loss).__name__} does not")
        if not isinstance(miner, BaseMiner):
            raise TypeError(f"miner must be a PML miner (a BaseMiner), got {type(miner).__name__}")
        self.miner: Any = miner
        self._mat: Tensor | None = None

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: IndicesTuple | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        mat: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch; the arguments are those of every PML loss.

        Args:
            embeddings: [n, d].
            labels: [n].
            indices_tuple: None: the miner finds the pairs.
            ref_emb: [m, d], what the embeddings are compared with. By default the batch, without self-pairs.
            ref_labels: [m].
            mat: [n, m], the matrix that the distance computes from embeddings and references, for a miner and a loss of
                this package or of PML 3. None: it is computed here.
        """
        if mat is None:
            return super().forward(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        if not isinstance(self.loss, MatrixLoss) and not (_pml.HAS_TERMS and not isinstance(self.loss, LossWrapper)):
            raise ValueError(f"mat is for pair losses of this package and of PML 3, not for {type(self.loss).__name__}")
        self._mat = mat
        try:
            return super().forward(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        finally:
            self._mat = None

    def loss_dict(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: IndicesTuple | None,
        ref_emb: Tensor,
        ref_labels: Tensor | None,
    ) -> dict[str, Any]:
        """The loss of the mined pairs."""
        if labels is None:
            raise ValueError("MinedLoss needs labels, got None")
        arguments.without_indices(type(self).__name__, indices_tuple)
        # PML knows self-pairs by the references not being given.
        references = (None, None) if ref_emb is embeddings else (ref_emb, ref_labels)
        pairs: Any
        if self._mat is not None:
            refs, their_labels = references
            pairs = mined_pairs(self.miner, self.loss, embeddings, labels, refs, their_labels, self._mat)
            return self.reduced(self.loss(embeddings, labels, pairs, *references, mat=self._mat))
        if isinstance(self.miner, PairMiner) and shares_scores(self.miner, self.loss):
            self.miner.embedding_size = embeddings.shape[1]
            pairs = Narrowed(Pairs.of(embeddings, labels, None, ref_emb, ref_labels), self.miner.narrow)
        else:
            pairs = mined_pairs(self.miner, self.loss, embeddings, labels, *references)
        return self.reduced(self.loss(embeddings, labels, pairs, *references))


def shares_scores(miner: PairMiner, loss: nn.Module) -> bool:
    """Whether a loss can make a miner's selection among its own scores: they are the same, and may be cut into rows."""
    if not miner.is_row_function or miner.collect_stats or not runs_by_rows(loss):
        return False
    rows: Any = loss
    similarity = rows.known_similarity()
    return similarity is not None and similarity == miner.known_similarity()


def mined_pairs(
    miner: nn.Module,
    loss: nn.Module,
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    mat: Tensor | None = None,
) -> Any:
    """What a miner finds, in the form that suits the loss: masks between a miner and a loss of ours."""
    arguments.batch(embeddings, labels, ref_emb, ref_labels, any_shape=has_own_shapes(miner.distance))
    if not isinstance(miner, PairMiner):
        return _pml.mine(miner, embeddings, labels, ref_emb, ref_labels, mat=mat)
    refs = (embeddings, labels) if ref_emb is None else (ref_emb, ref_labels)
    pairs = miner.masks(embeddings, labels, *refs, mat=mat)
    miner.output_assertion(pairs)
    return handed_on(pairs, loss)
