"""PML 2's trainers: a recipe's loss is what they take as `loss_funcs`, its miner as `mining_funcs`."""

import torch
from pytorch_metric_learning.samplers import MPerClassSampler
from pytorch_metric_learning.trainers import MetricLossOnly
from torch import nn

from pml_ext import catalog
from pml_ext.datasets import Digits


def main(epochs: int = 3) -> list[float]:
    torch.manual_seed(0)
    digits = Digits("train")
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
    recipe = catalog.build("BinDeviance2018")
    values: list[float] = []
    trainer = MetricLossOnly(
        models={"trunk": network},
        optimizers={"trunk_optimizer": torch.optim.Adam(network.parameters(), lr=1e-2)},
        batch_size=40,
        loss_funcs={"metric_loss": recipe.loss},
        mining_funcs={"tuple_miner": recipe.miner},
        dataset=digits,
        sampler=MPerClassSampler(digits.labels, m=8, batch_size=40, length_before_new_iter=800),
        data_device=torch.device("cpu"),
        dataloader_num_workers=0,
        end_of_iteration_hook=lambda trainer: values.append(float(trainer.losses["metric_loss"])),
    )
    trainer.train(num_epochs=epochs)
    print(f"loss {values[0]:.3f}, after {len(values)} steps {values[-1]:.3f}")
    return values


if __name__ == "__main__":
    main()
