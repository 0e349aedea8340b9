"""Whether a probability means what it says, and whether prediction sets keep their promise.

    python -m benchmarks.calibration --json out.json

The network of params.yaml, as in benchmarks/variants.py: 1,000 patients to learn from, 1,000 tested. Every
seed sets 15 % of the pool aside for the conformal quantile alone; temperature and quantile are fitted as
`willis evaluate` fits them. Then, for each subset of the modalities:

    ece       expected calibration error, the mean over seeds, beside `perfect 95`: what a perfectly
              calibrated model of these very probabilities stays below in 95 % of samples
    slope     of the outcome on the log-odds; 1 is perfect, less is overconfidence
    coverage  share of patients whose set holds their true class, the mean over seeds; 90 % is promised

and coverage once more, given everything, by subgroup. Coverage wobbles with the calibration patients and with
the tested ones: intervals resample seeds and patients. A group fails where its 99 % interval excludes 90 %.

The default size is one for a night on two cores; `--patients 60 --tested 20 --seeds 2 --epochs 1` shows that
it runs.
"""

import argparse
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
from numpy.random import default_rng

from benchmarks.learning_curve import add_size_arguments, tell
from benchmarks.missing import SUBSETS
from benchmarks.variants import Asked, Bench, Scores, Variant
from willis.evaluation.calibration import (
    ece_of_perfect_model,
    expected_calibration_error,
    slope_and_intercept,
)
from willis.evaluation.conformal import SUBGROUP_CONFIDENCE, covered
from willis.evaluation.fitting import Labelled, fit_calibration
from willis.evaluation.metrics import Numbers, percentile_interval
from willis.evaluation.patients import Patients
from willis.evaluation.subgroups import groups_of
from willis.inference import Predictor

TASK, OURS = "poor_outcome", "willis"
ALL = "+".join(SUBSETS[-1])
HELD_OUT = 0.15
"""Of the pool, for the quantile."""
PROMISED = 0.9
QUANTILE = "quantile"
MIN_GROUP = 10

Rows = Iterator[dict[str, object]]


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_size_arguments(parser, "variants", patients=2000, seeds=10)
    arguments = parser.parse_args()
    bench = Bench.prepare(arguments)
    num_pool = len(bench.patients.pool)
    variant = Variant("calibrated", labels=num_pool - round(HELD_OUT * num_pool))
    answers = bench.scores(variant, calibrated)
    tell([*measure(bench, answers, bench.seconds(variant))], arguments.json, arguments)
    print(f"{bench.cpu_hours([variant]):.2f} CPU hours, earlier starts included")


def calibrated(asked: Asked) -> dict[str, Numbers]:
    """Fit temperature and quantile; what the network then says of the tested patients, given each subset."""
    predictor = asked.predictor
    fitted = fit_calibration(
        labelled(predictor, asked.validation),
        labelled(predictor, asked.left_out),
        PROMISED,
        predictor.config.prevalence,
    )
    predictor = predictor.recalibrated(fitted)
    encodings = predictor.encode(asked.tested.cases)
    said = {"+".join(subset): predictor.probabilities(encodings, subset) for subset in SUBSETS}
    return said | {QUANTILE: np.full(len(asked.tested.cases), fitted.conformal_quantile)}


def labelled(predictor: Predictor, patients: Patients) -> Labelled:
    """Outcomes, and what the network says before calibration."""
    return Labelled(patients.outcome, predictor.probabilities(predictor.encode(patients.cases)))


def measure(bench: Bench, answers: Scores, seconds: float) -> Rows:
    """A row per subset and metric, and one per subgroup."""
    outcome = bench.outcome
    quantiles = [float(quantile[0]) for quantile in answers[QUANTILE]]
    everybody = np.ones(outcome.size, bool)
    for subset in map("+".join, SUBSETS):
        said = answers[subset]
        own = bench.fields(TASK, OURS, subset, "ece", seconds if subset == ALL else 0.0)
        yield own | calibration_error(outcome, said)
        yield own | {"metric": "slope", "seconds": 0.0} | mean_slope(outcome, said)
        inside = np.array([covered(outcome, p, q) for p, q in zip(said, quantiles, strict=True)])
        yield own | {"metric": "coverage", "seconds": 0.0} | coverage(inside, everybody, bench.counts)
        if subset == ALL:
            yield from by_group(bench, inside)


def calibration_error(outcome: Numbers, said: list[Numbers]) -> dict[str, object]:
    """ECE and that of a perfect model, means of what was said each time, and how often it is no larger."""
    found = np.array([expected_calibration_error(outcome, p) for p in said])
    perfect = np.array([ece_of_perfect_model(p) for p in said])
    within = int((found <= perfect).sum())
    return {
        "mean": float(found.mean()), "perfect_95": float(perfect.mean()), "times_within": within,
    }  # fmt: skip


def mean_slope(outcome: Numbers, said: list[Numbers]) -> dict[str, object]:
    """Mean calibration slope of the seeds that have one."""
    slopes = [slope for p in said if (slope := slope_and_intercept(outcome, p)[0]) is not None]
    return {"mean": float(np.mean(slopes)) if slopes else None}


def by_group(bench: Bench, inside: npt.NDArray[np.bool_]) -> Rows:
    """Coverage of every subgroup that is large enough to tell."""
    for group, level, member in groups_of(bench.rows_of(bench.patients.tested)):
        if member.sum() < MIN_GROUP:
            continue
        own = bench.fields(f"{TASK}, {group} {level}", OURS, ALL, "coverage", 0.0)
        yield own | {"num_patients": int(member.sum())} | coverage(inside, member, bench.counts)


def coverage(
    inside: npt.NDArray[np.bool_], member: npt.NDArray[np.bool_], counts: Numbers
) -> Mapping[str, float]:
    """Mean over seeds and patients of a group, with intervals that resample both.

    Args:
        inside: (seeds, n) the set holds the true class.
        member: (n,) who belongs to the group.
        counts: (b, n) resamples of the patients.
    """
    num_seeds = len(inside)
    dealt = default_rng(7).multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), len(counts))
    weights = counts[:, member]
    draws = (weights * (dealt / num_seeds @ inside[:, member])).sum(axis=1) / weights.sum(axis=1)
    value = float(inside[:, member].mean())
    narrow, wide = (percentile_interval(value, draws, c) for c in (0.95, SUBGROUP_CONFIDENCE))
    return {
        "mean": value, "low": narrow.low, "high": narrow.high, "low_99": wide.low, "high_99": wide.high,
    }  # fmt: skip


if __name__ == "__main__":
    main()
