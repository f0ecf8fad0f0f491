"""The clustering behind NMI and AMI where faiss is absent."""

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
        Called like PML's ``FaissKMeans``, with its 20 iterations; the initial centers are those of k-means++ with a
        fixed seed, so the clusters, and with them NMI and AMI, differ a little from those of faiss.
    """
    # Slow to import, and needed only where faiss is absent.
    from sklearn.cluster import KMeans

    kmeans = KMeans(n_clusters=num_clusters, n_init=1, max_iter=20, random_state=0)
    return torch.from_numpy(kmeans.fit_predict(embeddings.cpu().numpy())).long().to(embeddings.device)
