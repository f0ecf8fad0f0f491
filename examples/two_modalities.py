"""Can drawings and their captions find each other? Two networks, one loss of rows and references, both ways."""

import torch
from torch import nn

from pml_ext.evaluation import alignment, uniformity
from pml_ext.losses import HardnessWeightedContrastiveLoss, SigmoidPairLoss

CONCEPTS, SEEN = 60, 40


def pairs(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Drawings [n, 24] and captions [n, 16] of what they show, each modality with a map and noise of its own."""
    shown = torch.randint(0, CONCEPTS, (count,), generator=generator)
    world = torch.Generator().manual_seed(0)
    meaning = torch.randn(CONCEPTS, 8, generator=world)[shown]
    views = [meaning @ torch.randn(8, width, generator=world) for width in (24, 16)]
    drawings, captions = (view + 0.3 * torch.randn(view.shape, generator=generator) for view in views)
    return drawings, captions, shown


def train(loss: nn.Module, steps: int) -> tuple[float, float, float]:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    eye, ear = (nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, 12)) for width in (24, 16))
    networks = [*eye.parameters(), *ear.parameters()]
    # Slope and level of the sigmoid loss are learned, without weight decay.
    groups = [{"params": networks, "weight_decay": 1e-4}, {"params": [*loss.parameters()], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=3e-3)
    for _ in range(steps):
        drawings, captions, shown = pairs(64, generator)
        keep = shown < SEEN  # the other concepts are for the test
        x, y, names = eye(drawings[keep]), ear(captions[keep]), shown[keep]
        # Two captions of one concept are both right: labels say so, a diagonal would not.
        both = loss(x, names, ref_emb=y, ref_labels=names.clone()) + loss(y, names, ref_emb=x, ref_labels=names.clone())
        optimizer.zero_grad()
        both.backward()
        optimizer.step()
    with torch.no_grad():
        drawings, captions, shown = pairs(600, generator)
        new = shown >= SEEN
        x, y, names = eye(drawings[new]), ear(captions[new]), shown[new]
    nearest = (nn.functional.normalize(x) @ nn.functional.normalize(y).T).argmax(1)
    return (names[nearest] == names).double().mean().item(), alignment(x, names), uniformity(x)


def main(steps: int = 200) -> dict[str, tuple[float, float, float]]:
    losses = {"sigmoid": SigmoidPairLoss(), "softmax": HardnessWeightedContrastiveLoss(temperature=0.1, alpha=2)}
    results = {name: train(loss, steps) for name, loss in losses.items()}
    for name, (recall, aligned, even) in results.items():
        print(f"{name}: {recall:.0%} of the drawings find a caption; alignment {aligned:.2f}, uniformity {even:.2f}")
    return results


if __name__ == "__main__":
    main()
