"""XGBoost on the columns that it is given: the HAIM recipe where they hold embeddings."""

from collections.abc import Iterator

import numpy as np
from xgboost import XGBClassifier

from benchmarks.rivals.given import Numbers, Part, Settings, answer, search


def candidates(generator: np.random.Generator) -> Iterator[Settings]:
    """Yield a common starting point, then draws around it."""
    yield {
        "learning_rate": 0.05,
        "max_depth": 3,
        "min_child_weight": 5,
        "subsample": 0.8,
        "colsample_bytree": 0.5,
    }
    while True:
        yield {
            "learning_rate": 10 ** generator.uniform(-2, -0.7),
            "max_depth": int(generator.integers(2, 7)),
            "min_child_weight": 10 ** generator.uniform(0, 1.3),
            "subsample": generator.uniform(0.5, 1),
            "colsample_bytree": generator.uniform(0.1, 1),
            "reg_lambda": 10 ** generator.uniform(-1, 2),
        }


def fit(settings: Settings, part: Part) -> tuple[Numbers, Numbers]:
    """Boost until the validation patients gain nothing for 50 trees."""
    model = XGBClassifier(
        n_estimators=2000, early_stopping_rounds=50, eval_metric="logloss", n_jobs=1, random_state=part.seed,
        **settings,
    )  # fmt: skip
    model.fit(part.train, part.outcome, eval_set=[(part.validation, part.validation_outcome)], verbose=False)
    return model.predict_proba(part.validation)[:, 1], model.predict_proba(part.test)[:, 1]


if __name__ == "__main__":
    answer(lambda given: search(given, candidates, fit))
