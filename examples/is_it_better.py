"""Is one set of embeddings better than another, or is the difference noise?

Projects handwritten digits at random to 8 and to 16 dimensions, three seeds each, and compares what retrieval finds.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from pml_ext.evaluation import Comparison, compare, evaluate


def projected(images: Tensor, dimensions: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return images @ torch.randn(images.shape[1], dimensions, generator=generator)


def main(samples: int = 600) -> tuple[Comparison, Comparison]:
    images, labels = load_digits(return_X_y=True)
    images, labels = torch.from_numpy(images[:samples]).float(), labels[:samples]
    small = [projected(images, 8, seed) for seed in range(3)]
    large = [projected(images, 16, seed) for seed in range(3)]
    again = [projected(images, 16, seed) for seed in range(3, 6)]

    print("16 dimensions, one seed:")
    print(evaluate(large[0], labels))
    print("\n16 dimensions against 8:")
    better = compare(large, small, labels)
    print(better)
    print("\n16 dimensions against 16 with other seeds:")
    same = compare(large, again, labels)
    print(same)
    return better, same


if __name__ == "__main__":
    main()
