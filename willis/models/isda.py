"""Implicit semantic augmentation: learn as if every embedding were drawn anew along its class (eq. 51 to 54).

Axis letters: B cases, R width of the embedding; classes good and poor in this order.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

NUM_CLASSES = 2


class ClassSpread(nn.Module):
    """Covariance of the embedding within each class, over all training rows so far.

    Reference:
        Wang et al., NeurIPS 2019 (arXiv 1909.12220): the online estimate and the closed form.
    """

    count: Tensor
    mean: Tensor
    covariance: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(NUM_CLASSES))
        self.register_buffer("mean", torch.zeros(NUM_CLASSES, width))
        self.register_buffer("covariance", torch.zeros(NUM_CLASSES, width, width))

    def along(self, weight: Float[Tensor, " R"]) -> Float[Tensor, " 2"]:
        """w . Sigma_c w, the variance of the logit within each class."""
        return torch.einsum("i,cij,j->c", weight.float(), self.covariance, weight.float())

    @torch.no_grad()
    def take_in(
        self, embedding: Float[Tensor, "B R"], outcome: Float[Tensor, " B"], weight: Float[Tensor, " B"]
    ) -> None:
        """Add a batch to the means and covariances, less rows that have no outcome or do not count.

        The buffers are replaced, not changed: the graph of the step still holds the old ones.
        """
        taken = [self._taken(c, embedding[(outcome == c) & (weight > 0)].float()) for c in range(NUM_CLASSES)]
        self.count, self.mean, self.covariance = (torch.stack(parts) for parts in zip(*taken, strict=True))

    def _taken(self, c: int, rows: Float[Tensor, "N R"]) -> tuple[Tensor, Tensor, Tensor]:
        count, mean, covariance = self.count[c], self.mean[c], self.covariance[c]
        if not len(rows):
            return count, mean, covariance
        share = len(rows) / (count + len(rows))
        apart, shift = rows - rows.mean(dim=0), rows.mean(dim=0) - mean
        within = (1 - share) * covariance + share * apart.T @ apart / len(rows)
        return count + len(rows), mean + share * shift, within + share * (1 - share) * shift.outer(shift)
