"""Random survival forest: it learns from the days until death or the end of follow-up, not from the outcome.

Each tested patient is asked for one horizon, `horizon_days`; the training patients have `days` and `died` in
its place. How small a leaf may be is chosen by the concordance of the trees' own left-out patients.

Reference:
    Ishwaran et al., Ann Appl Stat 2:841, 2008.
"""

import numpy as np
from sksurv.ensemble import RandomSurvivalForest
from sksurv.util import Surv

from benchmarks.rivals.given import Given, Numbers, answer

DAYS, DIED, HORIZON = "days", "died", "horizon_days"
NUM_TREES = 300
LEAVES = (3, 10, 30)


def predict(given: Given) -> Numbers:
    """Probability of death by the horizon, for each tested patient."""
    known = given.train.drop(columns=[DAYS, DIED])
    followed = Surv.from_arrays(given.train[DIED].astype(bool), given.train[DAYS])
    forests = [
        RandomSurvivalForest(
            NUM_TREES, min_samples_leaf=leaf, oob_score=True, n_jobs=1, random_state=given.seed
        ).fit(known, followed)
        for leaf in LEAVES
    ]
    best = max(forests, key=lambda forest: forest.oob_score_)
    alive = best.predict_survival_function(given.test[known.columns])
    asked = zip(alive, given.test[HORIZON], strict=True)
    return np.array([1 - curve(horizon) for curve, horizon in asked])


if __name__ == "__main__":
    answer(predict)
