"""From a logit to a decision: temperature, prediction set, and what each modality added.

Numpy alone, so that serving and evaluation share one arithmetic.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import factorial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from willis.cohort.schema import MODALITIES
from willis.errors import BundleError

CLASSES = ("good", "poor")
_EDGE = 1e-6


class Calibration(BaseModel):
    """What was fitted after training: temperature and threshold on validation, quantile on calibration.

    calibration.json of an evaluation and of a bundle is one of these.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    temperature: float = Field(1.0, gt=0)
    threshold: float = Field(0.5, ge=0, le=1)
    conformal_quantile: float = Field(1.0, ge=0, le=1, description="largest 1 - P(class) still in the set")
    conformal_coverage: float = Field(0.9, gt=0, lt=1)
    num_validation: int = Field(0, ge=0)
    num_calibration: int = Field(0, ge=0)
    notes: tuple[str, ...] = ()

    @classmethod
    def load(cls, path: Path) -> "Calibration":
        """Read calibration.json.

        Raises:
            BundleError: the file is missing or damaged.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise BundleError(f"{path} does not exist; run `willis evaluate`, which writes it") from None
        except ValidationError as error:
            raise BundleError(f"{path} is damaged: {error.errors()[0]['msg']}; evaluate again") from None


def logit(probability: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Log-odds, with probabilities kept a millionth away from 0 and 1."""
    p = np.clip(np.asarray(probability, np.float64), _EDGE, 1 - _EDGE)
    return np.asarray(np.log(p / (1 - p)))


def sigmoid(value: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Probability of log-odds, without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * np.asarray(value, np.float64))))


def tempered(probability: npt.ArrayLike, temperature: float) -> npt.NDArray[np.float64]:
    """Divide the log-odds by `temperature`: above 1 softens, below 1 sharpens; ranks stay."""
    return sigmoid(logit(probability) / temperature)


def prediction_set(probability: float, quantile: float) -> tuple[str, ...]:
    """Return the classes whose probability is at least 1 - quantile: one, both, or (rarely) none."""
    strangeness = zip(CLASSES, (probability, 1 - probability), strict=True)
    return tuple(name for name, score in strangeness if score <= quantile)


def subsets_of(present: Sequence[str]) -> tuple[frozenset[str], ...]:
    """Every non-empty subset, smaller ones first; the last one is the whole."""
    return tuple(
        frozenset(chosen) for size in range(1, len(present) + 1) for chosen in combinations(present, size)
    )


def proper_subsets(used: Sequence[str]) -> tuple[frozenset[str], ...]:
    """Every non-empty subset of the modalities that a network reads, but for all of them together."""
    ordered = [name for name in MODALITIES if name in used]
    return subsets_of(ordered)[:-1]


def subset_name(subset: frozenset[str]) -> str:
    """What reports call a subset of the modalities: `image only`, `image and table`."""
    names = [name for name in MODALITIES if name in subset]
    return f"{names[0]} only" if len(names) == 1 else " and ".join(names)


def shapley(present: Sequence[str], value: Mapping[frozenset[str], float], empty: float) -> dict[str, float]:
    """Exact Shapley value of each present modality.

    Args:
        present: the modalities of this case.
        value: probability given each non-empty subset of them.
        empty: probability when nothing is known: the training prevalence.

    Returns:
        Modality -> share; the shares add up to value[all] - empty.

    Reference:
        Shapley, A value for n-person games (1953): the mean marginal gain over all orders of arrival.
    """
    known = {**value, frozenset(): empty}
    count = len(present)
    shares = {}
    for name in present:
        others = [other for other in present if other != name]
        total = 0.0
        for before in (frozenset(), *subsets_of(others)):
            weight = factorial(len(before)) * factorial(count - len(before) - 1) / factorial(count)
            total += weight * (known[before | {name}] - known[before])
        shares[name] = total
    return shares
