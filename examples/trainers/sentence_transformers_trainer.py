"""sentence-transformers: any loss of labels in their trainer, on texts with a class each.

For pairs of texts, mined hard negatives and a guide see `examples/sentence_pairs.py`.
"""

import tempfile
from collections.abc import Iterable

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

from pml_ext.losses import RAWLoss

ANIMALS = ["cat", "dog", "bird", "fish", "horse", "cow", "sheep", "goat"]
TEXTS = [f"the {animal} {does}" for animal in ANIMALS for does in ("sleeps", "eats", "runs", "plays")]


class LabelLoss(nn.Module):
    """A loss of embeddings and labels as SentenceTransformerTrainer calls it."""

    def __init__(self, model: SentenceTransformer, loss: nn.Module) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        (features,) = sentence_features
        return self.loss(self.model(features)["sentence_embedding"], labels)


def main(epochs: int = 3) -> list[float]:
    torch.manual_seed(0)
    words = sorted({word for text in TEXTS for word in text.split()})
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=32)], device="cpu")
    texts = Dataset.from_dict({"text": TEXTS, "label": [i // 4 for i in range(len(TEXTS))]})
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=16,
            learning_rate=0.01,
            batch_sampler="group_by_label",
            logging_steps=1,
            report_to="none",
            save_strategy="no",
        )
        trainer = SentenceTransformerTrainer(model, arguments, train_dataset=texts, loss=LabelLoss(model, RAWLoss()))
        trainer.train()
    values = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(f"loss {values[0]:.3f}, after {len(values)} steps {values[-1]:.3f}")
    return values


if __name__ == "__main__":
    main()
