"""The clustering behind NMI and AMI."""

import warnings

import torch
from torch import Tensor


def scikit_kmeans(embeddings: Tensor, num_clusters: int) -> Tensor:
    """Assign every embedding to one of ``num_clusters`` clusters with scikit-learn's k-means, always the same way.

    Args:
        embeddings: [n, d].
        num_clusters: at most n.

    Returns:
        The clusters [n], integers from 0, on the device of the embeddings.

    Source:
        k-means++ (Arthur and Vassilvitskii, 2007) with a fixed seed, then 20 iterations, as many as PML's
        ``FaissKMeans`` makes from samples drawn at random.
    """
    # Slow to import.
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    kmeans = KMeans(n_clusters=num_clusters, n_init=1, max_iter=20, random_state=0)
    with warnings.catch_warnings():
        # Collapsed embeddings have fewer different points than clusters.
        warnings.simplefilter("ignore", ConvergenceWarning)
        clusters = kmeans.fit_predict(embeddings.cpu().numpy())
    return torch.from_numpy(clusters).long().to(embeddings.device)
