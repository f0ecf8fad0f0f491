"""Do synthetic negatives get harder as training goes on? Two variants of HDML in PML 2's trainer, on unseen digits."""

import torch
from pytorch_metric_learning.samplers import MPerClassSampler
from torch import nn

from pml_ext.datasets import Digits
from pml_ext.evaluation import RetrievalAccuracyCalculator
from pml_ext.trainers import HardnessAwareTrainer, hardness_aware_trainer


def train(variant: str, epochs: int) -> tuple[float, float, float]:
    torch.manual_seed(0)
    dataset, test = Digits("train"), Digits("test")
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU())
    embedder = nn.Linear(64, 16)
    lambdas: list[float] = []

    def note(trainer: HardnessAwareTrainer) -> None:
        lambdas.append(float(trainer.schedule.lam))

    trainer = hardness_aware_trainer(
        variant,
        trunk,
        embedder,
        dataset,
        num_classes=5,
        batch_size=40,
        learning_rate=1e-3,
        period=10,  # refresh lambda and the mixing weight every 10 steps
        sampler=MPerClassSampler(dataset.labels, m=8, length_before_new_iter=len(dataset)),
        data_device=torch.device("cpu"),
        dataloader_num_workers=0,
        end_of_iteration_hook=note,
    )
    trainer.train(num_epochs=epochs)

    with torch.no_grad():
        embeddings = nn.functional.normalize(embedder(trunk(torch.stack([image for image, _ in test]))))
    calculator = RetrievalAccuracyCalculator(recall_at=(1,), include=("recall_at_1",))
    return lambdas[0], lambdas[-1], calculator.get_accuracy(embeddings, test.labels)["recall_at_1"]


def main(epochs: int = 2) -> dict[str, tuple[float, float, float]]:
    results = {variant: train(variant, epochs) for variant in ("triplet", "n_pair")}
    for variant, (first, last, recall) in results.items():
        print(f"{variant}: lambda from {first:.2f} to {last:.2f}, recall@1 on unseen digits {recall:.3f}")
    return results


if __name__ == "__main__":
    main()
