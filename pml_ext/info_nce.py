"""The frame of the contrastive losses: every positive of an anchor against what its negatives add up to.

With x_ij = s_ij / temperature and g_i a function of row i, the log of the sum that a loss makes of the negatives,

    L_i = mean_{p in P_i} log(1 + exp(g_i - x_ip)) ,
    dL_i/dx_ip = -a_p / |P_i| ,   dL_i/dg_i = mean_{P_i} a ,   a_p = sigmoid(g_i - x_ip)

The mean over the positives stands outside the logarithm, and none of them is in the sum of another.
"""

from torch import Tensor

from pml_ext.masked import masked_mean, softplus


def info_nce(logits: Tensor, pos: Tensor, log_negatives: Tensor) -> Tensor:
    """Mean over the positives of -log softmax: logits, pos [.., n, m], log_negatives [.., n] -> [.., n]."""
    return masked_mean(softplus(log_negatives.unsqueeze(-1) - logits), pos)


def info_nce_sides(logits: Tensor, pos_count: Tensor, log_negatives: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same from one side: losses [b, 1], their derivatives by the logits [b, k] and by `log_negatives` [b, 1].

    Args:
        logits: those of the positives [b, k], absent ones infinitely high; overwritten.
        pos_count: [b, 1].
        log_negatives: [b, 1].
    """
    count = pos_count.clamp(min=1)
    margin = logits.neg_().add_(log_negatives)
    losses = softplus(margin).sum(1, keepdim=True) / count
    slopes = margin.sigmoid_().div_(count)
    by_negatives = slopes.sum(1, keepdim=True)
    return losses, slopes.neg_(), by_negatives
