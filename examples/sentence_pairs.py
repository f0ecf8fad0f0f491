"""How do mined hard negatives and a guide go into sentence-transformers? Columns of texts, references, one loss."""

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from pml_ext.losses import HardnessWeightedContrastiveLoss
from pml_ext.mining import mine
from pml_ext.wrappers import GuidedLoss

TOPICS = ["cat", "dog", "bird", "fish", "horse", "cow", "sheep", "goat", "duck", "frog"]
ANSWERS = [f"the {a} likes {b}" for a in TOPICS for b in ("grass", "water", "rest", "noise")]
QUESTIONS = [f"what does the {a} do with {b}" for a in TOPICS for b in ("grass", "water", "rest", "noise")]


def tiny_model(seed: int) -> SentenceTransformer:  # yours is SentenceTransformer("its name")
    words = sorted({word for text in ANSWERS + QUESTIONS for word in text.split()})
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(seed)
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=32)], device="cpu")


class ColumnsLoss(nn.Module):
    """A loss for SentenceTransformerTrainer: the columns are anchor, positive, and any number of hard negatives."""

    def __init__(self, model: SentenceTransformer, guide: SentenceTransformer) -> None:
        super().__init__()
        self.model, self.guide = model, guide
        self.loss = GuidedLoss(HardnessWeightedContrastiveLoss(temperature=0.05, alpha=5))

    def forward(self, sentence_features: list[dict[str, torch.Tensor]], labels: object = None) -> torch.Tensor:
        rows, *columns = (self.model(dict(each))["sentence_embedding"] for each in sentence_features)
        with torch.no_grad():  # of all that is no positive, what the guide finds nearer than it is no negative either
            guide, *guides = (self.guide(dict(each))["sentence_embedding"] for each in sentence_features)
        labels = torch.cat([names := torch.arange(len(rows)), -1 - torch.arange(len(rows) * (len(columns) - 1))])
        return self.loss(rows, names, torch.cat(columns), labels, guide=guide, guide_refs=torch.cat(guides))


def main(steps: int = 30) -> tuple[float, float]:
    model, guide, names = tiny_model(0), tiny_model(1), torch.arange(len(ANSWERS))
    asked, answered = (model.encode(texts, convert_to_tensor=True) for texts in (QUESTIONS, ANSWERS))
    mined = mine(asked, names, references=answered, reference_labels=names, num_negatives=1, relative_margin=0.05)
    kept, far = mined.anchors[mined.complete].tolist(), mined.negatives[mined.complete, 0].tolist()
    columns = [[QUESTIONS[i] for i in kept], [ANSWERS[i] for i in kept], [ANSWERS[j] for j in far]]
    loss, values = ColumnsLoss(model, guide), []
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(steps):  # or SentenceTransformerTrainer(model, train_dataset=..., loss=loss)
        optimizer.zero_grad()
        values.append(loss([model.preprocess(texts) for texts in columns]))
        values[-1].backward()
        optimizer.step()
    print(f"{mined}\nloss of {len(kept)} rows from {values[0].item():.2f} to {values[-1].item():.2f}")
    return values[0].item(), values[-1].item()


if __name__ == "__main__":
    main()
