"""LightGBM on the columns that it is given: the HAIM recipe where they hold embeddings."""

from collections.abc import Iterator

import numpy as np
from lightgbm import LGBMClassifier, early_stopping

from benchmarks.rivals.given import Numbers, Part, Settings, answer, search


def candidates(generator: np.random.Generator) -> Iterator[Settings]:
    """Yield a common starting point, then draws around it."""
    yield {
        "learning_rate": 0.05,
        "num_leaves": 7,
        "min_child_samples": 10,
        "subsample": 0.8,
        "colsample_bytree": 0.5,
    }
    while True:
        yield {
            "learning_rate": 10 ** generator.uniform(-2, -0.7),
            "num_leaves": int(generator.integers(3, 32)),
            "min_child_samples": int(generator.integers(3, 40)),
            "subsample": generator.uniform(0.5, 1),
            "colsample_bytree": generator.uniform(0.1, 1),
            "reg_lambda": 10 ** generator.uniform(-1, 2),
        }


def fit(settings: Settings, part: Part) -> tuple[Numbers, Numbers]:
    """Boost until the validation patients gain nothing for 50 trees."""
    model = LGBMClassifier(
        n_estimators=2000, subsample_freq=1, n_jobs=1, random_state=part.seed, verbose=-1, **settings
    )
    model.fit(
        part.train,
        part.outcome,
        eval_X=(part.validation,),
        eval_y=(part.validation_outcome,),
        eval_metric="binary_logloss",
        callbacks=[early_stopping(50, verbose=False)],
    )
    return model.predict_proba(part.validation)[:, 1], model.predict_proba(part.test)[:, 1]


if __name__ == "__main__":
    answer(lambda given: search(given, candidates, fit))
