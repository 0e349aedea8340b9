"""Whether a probability means what it says, and whether prediction sets keep their promise.

    python -m benchmarks.calibration --json out.json

The network of params.yaml on the cohort of benchmarks/variants.py. Every seed deals the patients anew: 1,000
are tested, of the others 15 % are set aside for temperature and conformal quantile, and other ones stop
training early: patients who did so in every deal would bring their luck into every deal. Both are fitted as
`willis evaluate` fits them. Then, for each subset of the modalities:

    ece       expected calibration error, the mean over seeds, beside `perfect 95`: what a perfectly
              calibrated model of these very probabilities stays below in 95 % of samples
    slope     of the outcome on the log-odds; 1 is perfect, less is overconfidence
    coverage  share of patients whose set holds their true class, the mean over seeds; 90 % is promised

and coverage once more, given everything, by subgroup. Coverage wobbles with the patients whom the quantile is
fitted on and with those tested: intervals resample deals and patients. A group fails where its 99 % interval
excludes 90 %.

The default size is one for a night on two cores; `--patients 60 --tested 20 --seeds 2 --epochs 1` shows that
it runs.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmarks.learning_curve import NUM_BOOTSTRAP, add_size_arguments, tell
from benchmarks.missing import SUBSETS, answers
from benchmarks.variants import Asked, Bench, Variant
from willis.evaluation.calibration import (
    ece_of_perfect_model,
    expected_calibration_error,
    slope_and_intercept,
)
from willis.evaluation.conformal import MIN_GROUP, SUBGROUP_CONFIDENCE, covered
from willis.evaluation.fitting import Labelled, fit_calibration
from willis.evaluation.metrics import Numbers, bootstrap_counts, percentile_interval
from willis.evaluation.patients import Patients
from willis.evaluation.subgroups import groups_of
from willis.inference import Predictor

TASK, OURS = "poor_outcome", "willis"
ALL = "+".join(SUBSETS[-1])
HELD_OUT = 0.15
"""Of the pool, for temperature and quantile."""
PROMISED = 0.9
QUANTILE = "quantile"

Rows = Iterator[dict[str, object]]


@dataclass(frozen=True)
class Deal:
    """One seed: who was tested, and what a calibrated network said of them.

    Attributes:
        frame: rows of the training table.
        outcome: (n,) 1 poor, 0 good.
        said: subset -> (n,) calibrated probabilities.
        quantile: of the prediction sets.
    """

    frame: pd.DataFrame
    outcome: Numbers
    said: Mapping[str, Numbers]
    quantile: float


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_size_arguments(parser, "variants", patients=2000, seeds=10)
    arguments = parser.parse_args()
    bench = Bench.prepare(arguments)
    num_pool = len(bench.patients.pool)
    variant = Variant("deal", labels=num_pool - round(HELD_OUT * num_pool))
    deals, seconds, hours = [], 0.0, 0.0
    for seed in bench.seeds:
        own = replace(bench, patients=bench.patients.dealt(seed), seeds=(seed,))
        said = {name: scores[0] for name, scores in own.scores(variant, calibrated).items()}
        quantile = float(said.pop(QUANTILE)[0])
        deals.append(Deal(own.rows_of(own.patients.tested), own.outcome, said, quantile))
        seconds, hours = seconds + own.seconds(variant), hours + own.cpu_hours([variant])
    tell([*measure(deals, seconds)], arguments.json, arguments)
    print(f"{hours:.2f} CPU hours, earlier starts included")


def calibrated(asked: Asked) -> dict[str, Numbers]:
    """Fit temperature and quantile; what the network then says of the tested patients, given each subset."""
    predictor = asked.predictor
    fitted = fit_calibration(
        labelled(predictor, asked.validation),
        labelled(predictor, asked.left_out),
        PROMISED,
        predictor.config.prevalence,
    )
    said = answers(replace(asked, predictor=predictor.recalibrated(fitted)), SUBSETS)
    return said | {QUANTILE: np.full(len(asked.tested.cases), fitted.conformal_quantile)}


def labelled(predictor: Predictor, patients: Patients) -> Labelled:
    """Outcomes, and what the network says before calibration."""
    return Labelled(patients.outcome, predictor.probabilities(predictor.encode(patients.cases)))


def measure(deals: Sequence[Deal], seconds: float) -> Rows:
    """A row per subset and metric, and one per subgroup."""
    everybody = [np.ones(deal.outcome.size, bool) for deal in deals]
    for subset in map("+".join, SUBSETS):
        num_tested = deals[0].outcome.size
        own = {"task": TASK, "model": OURS, "subset": subset, "num_patients": num_tested, "seconds": 0.0}
        pairs = [(deal.outcome, deal.said[subset]) for deal in deals]
        spent = {"seconds": seconds if subset == ALL else 0.0}
        yield own | spent | {"metric": "ece"} | calibration_error(pairs)
        yield own | {"metric": "slope"} | mean_slope(pairs)
        yield own | {"metric": "coverage"} | coverage(deals, subset, everybody)
        if subset == ALL:
            yield from by_group(deals, own)


def calibration_error(pairs: Sequence[tuple[Numbers, Numbers]]) -> dict[str, object]:
    """ECE and that of a perfect model, means over pairs, and how often it is no larger.

    Args:
        pairs: outcomes and probabilities, (n,) each.
    """
    found = np.array([expected_calibration_error(outcome, p) for outcome, p in pairs])
    perfect = np.array([ece_of_perfect_model(p) for _, p in pairs])
    within = int((found <= perfect).sum())
    return {"mean": float(found.mean()), "perfect_95": float(perfect.mean()), "times_within": within}


def mean_slope(pairs: Sequence[tuple[Numbers, Numbers]]) -> dict[str, object]:
    """Mean calibration slope of the pairs that have one."""
    slopes = [slope for pair in pairs if (slope := slope_and_intercept(*pair)[0]) is not None]
    return {"mean": float(np.mean(slopes)) if slopes else None}


def by_group(deals: Sequence[Deal], own: Mapping[str, object]) -> Rows:
    """Coverage of every subgroup that is large enough to tell in the mean deal."""
    groups = [{(name, level): member for name, level, member in groups_of(deal.frame)} for deal in deals]
    for name, level in sorted(set().union(*groups)):
        members = [
            found.get((name, level), np.zeros(deal.outcome.size, bool))
            for found, deal in zip(groups, deals, strict=True)
        ]
        num_patients = float(np.mean([member.sum() for member in members]))
        if num_patients < MIN_GROUP:
            continue
        told = {"task": f"{TASK}, {name} {level}", "metric": "coverage", "num_patients": round(num_patients)}
        yield {**own, **told} | coverage(deals, ALL, members)


def coverage(
    deals: Sequence[Deal], subset: str, members: Sequence[npt.NDArray[np.bool_]]
) -> dict[str, object]:
    """Mean over deals of a group's coverage, with intervals that resample deals and patients.

    A patient who is tested in several deals is one patient, who is drawn with all that was said.

    Args:
        deals: of the same cohort.
        subset: what the network was given.
        members: per deal (n,) who belongs to the group.
    """
    patients = sorted(set().union(*(deal.frame["patient_id"] for deal in deals)))
    held, inside = np.zeros((2, len(deals), len(patients)))
    for row, (deal, member) in enumerate(zip(deals, members, strict=True)):
        at = np.searchsorted(patients, deal.frame["patient_id"].to_numpy(str))
        held[row, at] = member
        inside[row, at] = member & covered(deal.outcome, deal.said[subset], deal.quantile)
    counts = bootstrap_counts(len(patients), NUM_BOOTSTRAP, seed=7)
    times = np.random.default_rng(7).multinomial(len(deals), np.full(len(deals), 1 / len(deals)), len(counts))
    draws = (counts * (times @ inside)).sum(axis=1) / (counts * (times @ held)).sum(axis=1)
    value = float(inside.sum() / held.sum())
    narrow, wide = (percentile_interval(value, draws, c) for c in (0.95, SUBGROUP_CONFIDENCE))
    return {
        "mean": value, "low": narrow.low, "high": narrow.high, "low_99": wide.low, "high_99": wide.high,
    }  # fmt: skip


if __name__ == "__main__":
    main()
