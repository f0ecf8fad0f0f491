"""Why a run does not improve although each batch looks right: its gradient, its parameters, its pairs, its loss."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

# Of the pairs, one positive and one negative, in which the positive is closer: chance is a half. For so many
# measurements in a row, and after so many steps, a run that has the right labels is above it.
NO_CLOSER = 0.55
IN_A_ROW = 3
STEPS = 50
# Share of the dimensions that the classes could take: below, the embedding is thin. With fewer than so many to take,
# the share says nothing.
THIN_SHARE = 0.2
THIN_FROM = 10
# More positive pairs than this share of the same image: the sampler repeats images. Where each of 16 images of a class
# may be drawn anew, a batch has 6 % of them on average.
REPEATED_SHARE = 0.2
# Of the largest loss of the first measurements, in the last ones: so many in a row as above of both.
ABOVE_START = 1.1


def thin(effective_rank: float, possible: int, dimension: int) -> str:
    """A line if the embeddings take few of the dimensions that their classes could take, and "" otherwise."""
    if possible < THIN_FROM or not effective_rank < THIN_SHARE * possible:
        return ""
    return f"few dimensions: {effective_rank:.0f} of {dimension} are in use, the classes could take {possible}"


def mixed(separations: Sequence[float], steps: int | None = None) -> str:
    """A line if positives are no closer than negatives, over measurements in a row, and "" otherwise."""
    mean = sum(separations) / len(separations)
    if not mean < NO_CLOSER:
        return ""
    after = "" if steps is None else f" after {steps} steps"
    return (
        f"positives no closer than negatives{after}: closer in {mean:.0%} of the comparisons, chance is 50%; "
        "do the labels belong to the images?"
    )


def repeats(shares: Sequence[float]) -> str:
    """A line if many positive pairs are pairs of one image, over measurements in a row, and "" otherwise."""
    share = sum(shares) / len(shares)
    if not share > REPEATED_SHARE:
        return ""
    return f"repeated images: {share:.0%} of the positive pairs are the same image, from which nothing is learned"


def risen(losses: Sequence[float]) -> str:
    """A line if the loss has been above its start for a while, and "" otherwise."""
    begun = max(losses[:IN_A_ROW], default=0.0)
    if len(losses) < 2 * IN_A_ROW or not min(losses[-IN_A_ROW:]) > ABOVE_START * begun > 0:
        return ""
    return f"loss above its start: {losses[-1]:.4g}, it was {begun:.4g}; a smaller learning rate may help"


def without_gradient(requires_grad: bool, gradient: float, loss: float) -> str:
    """A line if the embeddings get no gradient, and "" otherwise or if it is not known."""
    if not requires_grad:
        return "no gradient reaches the embeddings: they do not require one, as after detach() or under no_grad()"
    if gradient != 0:
        return ""
    if loss == 0:
        return "nothing to learn from: the loss and its gradient are 0"
    return f"no gradient reaches the embeddings: it is 0, at a loss of {loss:.4g}"


def parameters_behind(embeddings: Tensor) -> list[nn.Parameter]:
    """The parameters that embeddings were computed with, from their graph."""
    if isinstance(embeddings, nn.Parameter):
        return [embeddings]
    found, seen, waiting = [], set(), [embeddings.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if isinstance(variable, nn.Parameter):
            found.append(variable)
        waiting += [each for each, _ in node.next_functions]
    return found


class Motion:
    """Whether parameters change, by a fingerprint of each at the first look."""

    def __init__(self) -> None:
        self.first: dict[str, tuple[int, tuple[float, ...]]] = {}

    def still(self, name: str, parameters: Iterable[nn.Parameter], iteration: int) -> str:
        """A line if none of the parameters has changed since the first look at those of that name, "" otherwise."""
        there = sorted({id(each): each for each in parameters if each.requires_grad}.values(), key=id)
        if not there:
            return ""
        prints = _prints(there)
        begun, before = self.first.setdefault(name, (iteration, prints))
        if iteration - begun < IN_A_ROW or before != prints:
            return ""
        return (
            f"nothing moves: none of the {len(there)} parameters of {name} has changed since step {begun}; "
            "are they in the optimizer, with a learning rate above 0?"
        )


@torch.no_grad()
def _prints(parameters: list[nn.Parameter]) -> tuple[float, ...]:
    """Numbers that change when a parameter does."""
    sums = [torch.stack((each.double().sum(), each.double().square().sum())).cpu() for each in parameters]
    return tuple(0.0 if math.isnan(number) else number for number in torch.cat(sums).tolist())
