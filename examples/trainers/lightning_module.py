"""Lightning: the loss is a part of the module.

`DistributedLoss` is the loss itself in one process, and that of the batch of all processes under `strategy="ddp"`.
"""

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pml_ext.datasets import Digits
from pml_ext.losses import RAWLoss
from pml_ext.mining import BalancedBatchSampler
from pml_ext.wrappers import DistributedLoss


class Embedder(lightning.LightningModule):
    """A network and its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
        self.loss = DistributedLoss(RAWLoss())
        self.values: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        images, labels = batch
        value: Tensor = self.loss(self.network(images), labels)
        self.values.append(value.item())
        return value

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def main(epochs: int = 3) -> list[float]:
    lightning.seed_everything(0, verbose=False)
    digits = Digits("train")
    batches = BalancedBatchSampler(digits.labels, classes_per_batch=5, samples_per_class=8)
    module = Embedder()
    # A sampler of batches stays as it is: Lightning would put one of its own in the place of a sampler of samples.
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        use_distributed_sampler=False,
        **dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False),
    )
    trainer.fit(module, DataLoader(digits, batch_sampler=batches))
    print(f"loss {module.values[0]:.3f}, after {len(module.values)} steps {module.values[-1]:.3f}")
    return module.values


if __name__ == "__main__":
    main()
