"""What each model says of the tested patients of one fold; everything is fitted on the training patients."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from benchmarks.copenhagen.patients import COLUMNS, DAYS, DIED, Task
from benchmarks.rivals.environments import Rival, python_of, run_script
from benchmarks.rivals.handout import OUTCOME, PATIENT, Handout
from benchmarks.rivals.race import checked
from willis.evaluation.baselines import Design, Kind, fit_baseline
from willis.evaluation.fold_training import predict_from_table
from willis.evaluation.folds import validation_of
from willis.evaluation.plans import Fold, known_values
from willis.params import TrainParams

FOREST = Rival.named("survival_forest")
LIMIT_S = 60
"""CPU seconds of a forest; it is stopped at twice that and its start-up."""


@dataclass(frozen=True)
class Question:
    """One fold of one task."""

    task: Task
    fold: Fold

    def train(self) -> pd.DataFrame:
        """Patients to learn from."""
        return self.task.frame[self.task.frame[PATIENT].isin(self.fold.train)]

    def test(self) -> pd.DataFrame:
        """Patients to predict."""
        return self.task.frame[self.task.frame[PATIENT].isin(self.fold.test)]


def by_network(question: Question, work: Path, params: TrainParams) -> pd.DataFrame:
    """The network as cross-validation trains it: 15 % of the training patients stop it early."""
    fold, outcome = question.fold, known_values(question.task.frame, OUTCOME)
    validation = validation_of(fold.train, outcome, params.seed)
    split = {patient: "validation" if patient in validation else "train" for patient in fold.train}
    split |= dict.fromkeys(fold.test, "test")
    return predict_from_table(question.task.frame, COLUMNS, split, work, params)


def by_baseline(question: Question, kind: Kind, seed: int) -> pd.DataFrame:
    """Logistic regression or boosting, as beside every evaluation."""
    test = question.test()
    fitted = fit_baseline(kind, kind, question.train(), COLUMNS, seed)
    return test[[PATIENT]].assign(p=fitted.predict(test))


def by_forest(question: Question, seed: int) -> pd.DataFrame:
    """The survival forest, in its own environment; it sees how long training patients lived.

    Raises:
        RivalError: it does not install, or dies.
    """
    python, given = python_of(FOREST), forest_handout(question)
    with tempfile.TemporaryDirectory(prefix="willis-forest-") as folder:
        given.write(Path(folder))
        run_script(FOREST, python, Path(folder), LIMIT_S, seed)
        return checked(Path(folder) / "predictions.parquet", given.test)


def forest_handout(question: Question) -> Handout:
    """Training patients with their follow-up, tested patients with the horizon that they are asked for."""
    train, test = question.train(), question.test()
    design = Design.fit(train, COLUMNS)
    names = [*design.numeric, *(f"{column}_{level}" for column, level in design.categories)]
    read = [pd.DataFrame(design.matrix(rows), rows.index, names) for rows in (train, test)]
    followed = {"days": train[DAYS].astype(float), "died": train[DIED].astype(float)}
    return Handout(
        train[[PATIENT, OUTCOME]].join(read[0]).assign(**followed),
        test[[PATIENT]].join(read[1]).assign(horizon_days=question.task.horizon_days),
    )
