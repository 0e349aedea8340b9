"""Named values into numbers, and numbers into one vector: the clinical table and the measured facts alike.

A `FeatureColumn` says how one value is read and scaled. The scale is fitted on the training split and
travels in the model's contract, so that serving reads a row exactly as training did.
"""

import math
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from willis.errors import ShapeError
from willis.models.feature_tokens import FeatureTransformer

TableEncoderName = Literal["mlp", "ft_transformer"]
CLIP_SD = 6.0
"""Standardised values beyond this many standard deviations are held there: a wrong unit must not rule."""

NUM_KNOTS = 5
"""Of a column that is cut into pieces: its quartiles and ends on the training split."""


class FeatureColumn(BaseModel):
    """How one named value becomes one standardised number.

    Attributes:
        name: column of the training table or field of a request.
        level: for a category, the value that this column answers with 1; None for numbers and flags.
        log: take log(1 + value) first (volumes and loads, which are log-normal).
        mean: of the training split, after the logarithm.
        sd: likewise; 1 where the training split has one value only.
        knots: ascending places, after the logarithm, between which the value counts piece by piece; none
            for a value that only has its straight road.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    level: str | None = None
    log: bool = False
    mean: float = 0.0
    sd: float = 1.0
    knots: tuple[float, ...] = ()

    def read(self, value: object) -> float:
        """Return the number that stands for `value`, before standardising; NaN where it is not known."""
        if _unknown(value):
            return math.nan
        if self.level is not None:
            return float(str(value) == self.level)
        number = float(value)  # type: ignore[arg-type]
        return math.log1p(max(number, 0.0)) if self.log else number


def encode_rows(
    columns: tuple[FeatureColumn, ...], rows: Iterable[Mapping[str, Any]]
) -> npt.NDArray[np.float32]:
    """Read rows of named values.

    Args:
        columns: what to read, in order.
        rows: one mapping per case; a missing key, None or NaN means not known.

    Returns:
        float32 (N, F), not standardised (the network does that); NaN where not known.
    """
    read = [[column.read(row.get(column.name)) for column in columns] for row in rows]
    return np.asarray(read, dtype=np.float32).reshape(len(read), len(columns))


def fit_columns(
    rows: list[dict[str, Any]], names: Iterable[str], *, piecewise: bool = False
) -> tuple[FeatureColumn, ...]:
    """Choose and scale columns from the training split.

    Args:
        rows: the training split alone.
        names: columns to use; text columns become one column per level, empty columns are left out.
        piecewise: give numbers of more than two values knots, at quantiles.

    Returns:
        Columns in the order of `names`, levels sorted.
    """
    columns: list[FeatureColumn] = []
    for name in names:
        known = [row[name] for row in rows if not _unknown(row.get(name))]
        is_text = any(isinstance(value, str) for value in known)
        levels = [*sorted({str(value) for value in known})] if is_text else [None]
        if known:
            columns += [_fitted(FeatureColumn(name=name, level=level, log=_is_volume(name)), known, piecewise)
                        for level in levels]  # fmt: skip
    return tuple(columns)


def _unknown(value: object) -> bool:
    return value is None or bool(value != value)  # NaN of any kind is the one value unlike itself


def _is_volume(name: str) -> bool:
    return name.endswith("_ml") or "load_" in name


def _fitted(column: FeatureColumn, known: list[Any], piecewise: bool) -> FeatureColumn:
    if column.level is not None:
        column = column.model_copy(update={"log": False})
    numbers = np.array([column.read(value) for value in known], dtype=np.float64)
    sd = float(numbers.std())
    scale = {"mean": float(numbers.mean()), "sd": sd if sd > 1e-9 else 1.0}
    knots = np.unique(np.quantile(numbers, np.linspace(0, 1, NUM_KNOTS)))
    cut = piecewise and len(np.unique(numbers)) > 2 and len(knots) > 2
    return column.model_copy(update=scale | {"knots": tuple(knots.tolist()) if cut else ()})


class Pieces(nn.Module):
    """How far a value has come through each piece between two of its knots, -1 to 1; 0 where it is missing.

    A linear map of these is any curve with kinks at the knots (docs/method.md, eq. 3e).

    Reference:
        piecewise linear encoding, Gorishniy et al., NeurIPS 2022, arXiv 2203.05556.
    """

    start: Tensor
    length: Tensor
    column: Tensor

    def __init__(self, columns: tuple[FeatureColumn, ...]) -> None:
        super().__init__()
        cut = [(place, pair) for place, c in enumerate(columns) for pair in pairwise(c.knots)]
        starts, lengths = [low for _, (low, _) in cut], [high - low for _, (low, high) in cut]
        self.register_buffer("start", torch.tensor(starts), persistent=False)
        self.register_buffer("length", torch.tensor(lengths), persistent=False)
        self.register_buffer("column", torch.tensor([p for p, _ in cut], dtype=torch.long), persistent=False)

    def __len__(self) -> int:
        return len(self.start)

    def forward(self, values: Float[Tensor, "B F"]) -> Float[Tensor, "B P"]:
        """Rows as `encode_rows` reads them to pieces, those of one column side by side."""
        come = ((values[:, self.column] - self.start) / self.length).clamp(0.0, 1.0)
        return (2 * come - 1).nan_to_num(0.0)


class FeatureEncoder(nn.Module):
    """Standardise, mark what is missing, and embed: x = W [s; m; q] + MLP([s; m; q]), or + FT(s, m).

    s are the standardised values (0 where missing), m the missing marks, whose weights are the learned
    missing embeddings, q the `Pieces` of columns that have knots. The linear road lets a small training split
    use what a logistic regression would. FT is a `FeatureTransformer`, with missing embeddings of its own
    (docs/method.md, eq. 3 to 3e).
    """

    mean: Tensor
    sd: Tensor

    def __init__(
        self,
        columns: tuple[FeatureColumn, ...],
        width: int,
        dropout: float,
        name: TableEncoderName = "mlp",
    ) -> None:
        super().__init__()
        self.num_columns = len(columns)
        self.register_buffer("mean", torch.tensor([c.mean for c in columns]), persistent=False)
        self.register_buffer("sd", torch.tensor([c.sd for c in columns]), persistent=False)
        self.pieces = Pieces(columns)
        num_inputs = 2 * len(columns) + len(self.pieces)
        self.linear = nn.Linear(num_inputs, width)
        self.mlp = _perceptron(num_inputs, width, dropout) if name == "mlp" else None
        self.transformer = (
            FeatureTransformer(len(columns), width, dropout) if name == "ft_transformer" else None
        )

    def forward(self, values: Float[Tensor, "B F"]) -> Float[Tensor, "B W"]:
        """Embed rows.

        Args:
            values: as `encode_rows` reads them; NaN where not known.

        Raises:
            ShapeError: the number of columns is not the one this encoder was fitted for.
        """
        if values.shape[-1] != self.num_columns:
            raise ShapeError(
                f"{values.shape[-1]} feature columns; the network was fitted for {self.num_columns} "
                "(contract.json lists them)"
            )
        missing = values.isnan()
        scaled = ((values - self.mean) / self.sd).clamp(-CLIP_SD, CLIP_SD)
        known = scaled.masked_fill(missing, 0.0)
        marked = torch.cat([known, missing.to(values.dtype), self.pieces(values)], dim=-1)
        embedded: Tensor = self.linear(marked)
        if self.mlp is not None:
            embedded = embedded + self.mlp(marked)
        if self.transformer is not None:
            embedded = embedded + self.transformer(known, missing)
        return embedded


def _perceptron(width_in: int, width: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width_in, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, width))
