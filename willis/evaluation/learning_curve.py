"""AUC against the number of patients to learn from: what more labelled patients would bring.

The test split is tested throughout. Each number of patients is drawn several times out of all others who have
an outcome; larger draws of the same repeat hold the smaller ones.
"""

from collections.abc import Sequence
from pathlib import Path

from willis.errors import ParamsError
from willis.evaluation import plots
from willis.evaluation.folds import MODELS, NO_PRETRAINING, evaluate_folds
from willis.evaluation.patients import Cohort
from willis.evaluation.plans import labelled_draws
from willis.evaluation.results import LearningCurve, LearningPoint
from willis.params import PretrainParams, TrainParams

CURVE, PICTURE = "learning_curve.json", "learning_curve.png"


def learning_curve(
    ingest: Path,
    features: Path,
    labels: Sequence[int],
    repeats: int,
    out: Path,
    params: TrainParams,
    *,
    pretrain: PretrainParams = NO_PRETRAINING,
) -> LearningCurve:
    """Train and test the network and its rivals on ever more patients; a killed run goes on.

    Args:
        ingest: output of `ingest`.
        features: output of `featurize`.
        labels: how many patients with an outcome to learn from.
        repeats: draws of each number; their AUCs are averaged.
        out: folder for learning_curve.json, learning_curve.png and the predictions of every run.
        params: section `train`; each network is trained in this process, not on Ray.
        pretrain: section `pretrain`; the encoder learns from everybody who is not tested.

    Raises:
        ParamsError: fewer than two numbers, or one that leaves a class out or is more than there are.
    """
    if len(set(labels)) < 2:
        raise ParamsError(f"a curve needs two numbers of patients or more; got {list(labels)}")
    frame = Cohort.read(ingest, features).frame
    plans = {num: labelled_draws(frame, num, repeats, params.seed) for num in sorted(set(labels))}
    points = tuple(
        LearningPoint(
            num_labels=num,
            result=evaluate_folds(ingest, features, plan, out / f"{num}", params, pretrain=pretrain),
        )
        for num, plan in plans.items()
    )
    curve = LearningCurve(points=points)
    plots.draw_learning_curve(out / PICTURE, curve, MODELS)
    partial = out / f".{CURVE}.partial"
    partial.write_text(curve.model_dump_json(indent=2) + "\n")
    partial.replace(out / CURVE)
    return curve
