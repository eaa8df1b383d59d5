"""How well do prefixes of vectors rank texts? The loss that both models are trained with.

Nested as in Kusupati et al., Matryoshka representation learning, 2022: every prefix is scaled to
unit length and judged on its own. Judged by three things: the similarities that a teacher's whole
vectors have (distillation), those that the model's own whole vectors have (so that prefixes find
what whole vectors will rank first), and which document belongs to which query (InfoNCE among all
of the batch). The teacher's own numbers may count beside these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as torch_functions

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class Documents:
    """Documents that are compared and not trained on.

    Attributes:
        vectors: By the model, (m, dim).
        teacher: By the teacher, unit length, (m, any).
    """

    vectors: Tensor
    teacher: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Nested:
    """The loss of a batch of queries and the documents that belong to them.

    Attributes:
        prefixes: How much each prefix length counts; the largest stands for the whole vector.
        temperature: What similarities are divided by before they become shares.
        labels: How much the right document counts, beside similarities.
        own: How much the model's own whole vectors count, beside the teacher's.
        squares: How much squared differences of similarities count, beside shares.
        direct: How much it counts that vectors be the teacher's own, prefix by prefix; for that the
            teacher's first numbers have to say the most.
    """

    prefixes: Mapping[int, float]
    labels: float
    own: float
    temperature: float = 0.05
    squares: float = 5.0
    direct: float = 0.0
    sizes: list[int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", sorted(self.prefixes, reverse=True))

    def __call__(
        self, vectors: Tensor, teacher: Tensor, more: Documents, *, labelled: bool
    ) -> Tensor:
        """Return the loss.

        Args:
            vectors: Of n texts, (n, dim); if labels count, of n / 2 queries and, behind them, the
                documents that belong to them.
            teacher: The same texts' vectors by the teacher, unit length, (n, any).
            more: Documents that belong to none of these queries, to be told from those that do.
            labelled: Whether labels count.
        """
        wanted = _others(teacher, more.teacher)
        shares = torch_functions.softmax(wanted / self.temperature, 1)
        whole: Tensor | None = None
        loss = torch.zeros(())
        for size in self.sizes:
            unit = torch_functions.normalize(vectors[:, :size], dim=1)
            beside = torch_functions.normalize(more.vectors[:, :size], dim=1)
            found = _others(unit, beside)
            logs = torch_functions.log_softmax(found / self.temperature, 1)
            part = torch_functions.kl_div(logs, shares, reduction="batchmean")
            part = part + self.squares * torch_functions.mse_loss(found, wanted)
            if whole is None:
                whole = logs.detach().exp()
            elif self.own:
                part = part + self.own * torch_functions.kl_div(logs, whole, reduction="batchmean")
            if self.direct:
                own = torch_functions.cosine_similarity(unit, teacher[:, :size])
                part = part + self.direct * (1 - own).mean()
            if labelled:
                part = part + self.labels * self._labels(unit, beside)
            loss = loss + self.prefixes[size] * part
        return loss

    def _labels(self, unit: Tensor, beside: Tensor) -> Tensor:
        queries, documents = unit.chunk(2)
        scores = queries @ torch.cat([documents, beside]).T / self.temperature
        back = documents @ queries.T / self.temperature
        right = torch.arange(len(queries))
        there = torch_functions.cross_entropy(scores, right)
        return (there + torch_functions.cross_entropy(back, right)) / 2


def _others(unit: Tensor, beside: Tensor) -> Tensor:
    """Similarities of n texts to all others and to m more, (n, n - 1 + m): to itself each is 1."""
    count = len(unit)
    others = (unit @ unit.T)[~torch.eye(count, dtype=torch.bool)].view(count, -1)
    return torch.cat([others, unit @ beside.T], 1)
