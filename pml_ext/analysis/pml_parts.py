"""Formulas of those classes of PML that methods of the catalog consist of: PML's docstrings have none."""

from collections.abc import Mapping

# In the form of a class docstring of this package.
FORMULAS: Mapping[str, str] = {
    "ContrastiveLoss": """Hinges on positive and on negative pairs, each averaged over those of the batch above 0.

    L = mean_{ip} [D_ip - pos_margin]+ + mean_{in} [neg_margin - D_in]+

On similarities the hinges are [pos_margin - s_ip]+ and [s_in - neg_margin]+.""",
    "MarginLoss": """Hinges on the two pairs of each triplet, divided by the number of hinges above 0.

    L = 1/V  sum_{ipn} ( [D_ip - beta + margin]+ + [beta - D_in + margin]+ ) ,   V = the number of positive hinges

over all triplets, or those of a miner. If beta is learned, nu beta is added.""",
    "SoftTripleLoss": """Softmax over the classes of similarities to several learned centers of each class.

    S_ic = sum_k q_ick s_ick ,   q_ick = exp(s_ick / gamma) / sum_h exp(s_ich / gamma)

    L_i = -log( exp(la (S_iy - margin)) / ( exp(la (S_iy - margin)) + sum_{c != y} exp(la S_ic) ) )

with s_ick the similarity of sample i and center k of class c, and y the class of the sample. The paper's term that
merges centers is not included; PML has it as `weight_regularizer=SparseCentersRegularizer(..)`. The centers are
parameters: give them to an optimizer.""",
    "NPairsLoss": """Softmax of the positive of each class among the positives of all classes of the batch.

    L_c = -log( exp(s_cc) / sum_k exp(s_ck) )

with s_ck the similarity of the anchor of class c and the positive of class k: one pair for each class.""",
    "MultipleLosses": """A weighted sum of losses.

    L = sum_k w_k L'_k""",
    "MultiSimilarityMiner": """Keeps the positives that are not much nearer than a negative, and the converse.

    P_i' = { p in P_i : s_ip - epsilon < max_{n in N_i} s_in }

    N_i' = { n in N_i : s_in + epsilon > min_{p in P_i} s_ip }""",
    "LpRegularizer": """A power of the lengths of the embeddings, to be added with `embedding_reg_weight`.

    L = mean_i ( sum_d |x_id|^p )^(power/p)""",
}
