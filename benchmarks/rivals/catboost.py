"""CatBoost on the columns that it is given: the HAIM recipe where they hold embeddings."""

from collections.abc import Iterator

import numpy as np
from catboost import CatBoostClassifier

from benchmarks.rivals.given import Numbers, Part, Settings, answer, search


def candidates(generator: np.random.Generator) -> Iterator[Settings]:
    """Yield a common starting point, then draws around it."""
    yield {"learning_rate": 0.05, "depth": 4, "l2_leaf_reg": 3, "rsm": 0.5}
    while True:
        yield {
            "learning_rate": 10 ** generator.uniform(-2, -0.7),
            "depth": int(generator.integers(2, 7)),
            "l2_leaf_reg": 10 ** generator.uniform(0, 2),
            "rsm": generator.uniform(0.1, 1),
        }


def fit(settings: Settings, part: Part) -> tuple[Numbers, Numbers]:
    """Boost until the validation patients gain nothing for 50 trees."""
    model = CatBoostClassifier(
        iterations=2000, early_stopping_rounds=50, border_count=64, thread_count=1, random_seed=part.seed,
        verbose=False, allow_writing_files=False, **settings,
    )  # fmt: skip
    model.fit(part.train, part.outcome, eval_set=(part.validation, part.validation_outcome))
    return model.predict_proba(part.validation)[:, 1], model.predict_proba(part.test)[:, 1]


if __name__ == "__main__":
    answer(lambda given: search(given, candidates, fit))
