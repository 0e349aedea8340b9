"""The benchmarks of a synthetic cohort at their smallest size: each runs, and goes on where it was killed."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks import calibration, ceiling, missing, pretraining

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

SIZE = ["--patients", "60", "--tested", "30", "--epochs", "1"]
LEAN = ["--fusions", "concat", "--no-losses", "--options", "--seeds", "1"]
Run = Callable[..., pd.DataFrame]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture
def run(work: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    def run(module: ModuleType, *options: str) -> pd.DataFrame:
        out = work / "out.json"
        given = [*SIZE, *options, "--work", str(work), "--json", str(out)]
        monkeypatch.setattr(sys, "argv", [module.__name__, *given])
        module.main()
        return pd.DataFrame(json.loads(out.read_text())["rows"])

    return run


def means(rows: pd.DataFrame) -> "pd.Series[float]":
    return rows.set_index(["model", "subset", "metric"])["mean"]


def test_ceiling_is_the_auc_of_the_true_probability_and_a_lead_the_difference_of_two_aucs(
    run: Run, work: Path
) -> None:
    found = means(run(ceiling, *LEAN))

    cohort = next(work.glob("cohort-*[0-9]"))
    truth = pd.read_parquet(cohort / "derivatives/truth/truth.parquet").set_index("patient_id")
    table = pd.read_csv(cohort / "participants.tsv", sep="\t").set_index("participant_id")
    known = table["mrs_90d"].dropna().sort_index().iloc[:30]
    expected = roc_auc_score(known >= 3, truth.loc[known.index, "p_poor"])
    assert found["true probability", "all", "auc"] == pytest.approx(expected)
    for rival in ("true probability", "concat", "table only", "boosting on true latents"):
        lead = found[f"willis over {rival}", "all", "auc_lead"]
        assert lead == pytest.approx(found["willis", "all", "auc"] - found[rival, "all", "auc"])


def test_a_benchmark_that_was_killed_trains_only_what_is_missing(run: Run, work: Path) -> None:
    first = run(ceiling, *LEAN)
    runs = {path: path.stat().st_mtime_ns for path in work.glob("*/runs/*.parquet")}
    gone = next(path for path in runs if path.stem == "concat-0")
    gone.unlink()

    again = run(ceiling, *LEAN)

    assert means(again).equals(means(first))
    assert {path for path in runs if path.stat().st_mtime_ns != runs[path]} == {gone}


def test_one_model_stands_beside_a_model_of_its_own_for_each_of_the_seven_subsets(run: Run) -> None:
    rows = run(missing, "--seeds", "1")

    measured = rows[rows["metric"] == "auc"].groupby("subset")["model"].agg(set)
    assert len(measured) == 7
    assert all(models == {"one model", "model of its own"} for models in measured)


def test_calibration_is_measured_for_every_subset_and_coverage_for_groups_too(run: Run) -> None:
    rows = run(calibration, "--seeds", "2")

    errors, coverages = (rows[rows["metric"] == metric] for metric in ("ece", "coverage"))
    assert errors["subset"].nunique() == len(errors) == 7
    assert (errors["perfect_95"] > 0).all()
    nested = coverages[["low_99", "low", "mean", "high", "high_99"]]
    assert (nested.diff(axis=1).iloc[:, 1:] >= 0).all(axis=None)
    groups = coverages[coverages["task"] != "poor_outcome"]
    assert not groups.empty
    assert groups["num_patients"].between(10, 30).all()


def test_pretraining_stands_beside_training_from_scratch_on_the_same_patients(run: Run) -> None:
    lean = ("--labels", "20", "--subsets", "volumes", "--methods", "brainmvp", "--pretrain-epochs", "1")

    found = means(run(pretraining, *lean, "--seeds", "1"))

    scratch, taught = (found[name, "volumes", "auc"] for name in ("scratch", "brainmvp"))
    assert found["brainmvp over scratch", "volumes", "auc_lead"] == pytest.approx(taught - scratch)
