"""Predictors on the same patients and the same resamples: AUC of each, and the headline's paired lead."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from willis.evaluation.metrics import Numbers, auc, auc_of_resamples, percentile_interval
from willis.evaluation.results import Interval, Rival

Kind = Literal["control", "baseline", "score"]


@dataclass(frozen=True)
class Scored:
    """One predictor's scores on the test patients.

    Attributes:
        name: what reports call it.
        scores: (k, n), one row per repeat (permutations), averaged in what is reported.
        is_probability: whether a Brier score means anything.
        note: what a reader must know.
    """

    name: str
    scores: Numbers
    is_probability: bool = True
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """The test patients and the headline; every rival is measured against it in the same way.

    Attributes:
        outcome: (n,) zeros and ones.
        headline: (n,) probabilities of the model with all modalities.
        counts: (b, n) bootstrap, shared by everything that is compared.
        confidence: of the intervals.
    """

    outcome: Numbers
    headline: Numbers
    counts: Numbers
    confidence: float

    def rival(self, scored: Scored, kind: Kind) -> Rival:
        """AUC of a rival and the headline's lead over it, both from the same resamples."""
        area = float(np.mean([auc(self.outcome, row) for row in scored.scores]))
        draws = np.mean([auc_of_resamples(self.outcome, row, self.counts) for row in scored.scores], axis=0)
        lead_draws = auc_of_resamples(self.outcome, self.headline, self.counts) - draws
        return Rival(
            name=scored.name,
            kind=kind,
            auc=percentile_interval(area, draws, self.confidence),
            lead=percentile_interval(auc(self.outcome, self.headline) - area, lead_draws, self.confidence),
            brier=float(np.mean((scored.scores - self.outcome) ** 2)) if scored.is_probability else None,
            note=scored.note,
        )

    def interval(self) -> Interval:
        """The headline's AUC with its patient-level bootstrap interval."""
        draws = auc_of_resamples(self.outcome, self.headline, self.counts)
        return percentile_interval(auc(self.outcome, self.headline), draws, self.confidence)


def patients_to_show(gain: float, num_patients: int, lead: Interval) -> int:
    """About how many test patients would show a lead of `gain`.

    The half-width of a lead's interval shrinks with the root of the number of patients; a lead is shown
    when it is as large as the half-width.
    """
    half_width = (lead.high - lead.low) / 2
    return max(2, int(np.ceil(num_patients * (half_width / gain) ** 2)))
