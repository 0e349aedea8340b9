"""A search on a real Ray cluster that is killed after its first trial and goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from ruamel.yaml import YAML

from tests.fixtures.arrays import TinyCohort
from tests.fixtures.ray import RayHead
from willis.errors import RayError
from willis.params import SearchRange, TrainParams, TuneParams, load_params
from willis.settings import Settings
from willis.steps.tune import TuneSummary, tune

pytestmark = pytest.mark.integration

TRAIN = TrainParams(epochs=3, batch_size=16, width=32, contrast_width=16, clip_norm=1e30)
SLOW, BROKEN = 1e-9, 1e30
TUNE = TuneParams(
    num_samples=3,
    max_concurrent=1,
    grace_epochs=1,
    reduction_factor=2,
    space={"learning_rate": SearchRange(choices=(SLOW, BROKEN))},
)
NOWHERE = Settings(ray_address="127.0.0.1:1")


@dataclass(frozen=True)
class Found:
    """What the killed and resumed command left."""

    out: Path
    printed: str
    before: list[str]

    @property
    def summary(self) -> TuneSummary:
        """tune.json."""
        return TuneSummary.model_validate_json((self.out / "tune.json").read_text())


@pytest.fixture(scope="module")
def found(tiny_ingest: TinyCohort, ray_head: RayHead, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Kill `willis tune` as soon as its first trial has ended; run it again."""
    folder = tmp_path_factory.mktemp("tune")
    sections = {"train": TRAIN.model_dump(mode="json"), "tune": TUNE.model_dump(exclude_defaults=True)}
    (folder / "params.yaml").write_text(json.dumps(sections))
    assert load_params(folder / "params.yaml").tune == TUNE
    words = ["tune", "--ingest", tiny_ingest.ingest, "--features", tiny_ingest.features, "--out", "out"]
    command = [sys.executable, "-c", "from willis.cli import main; main()", *map(str, words), "--json"]
    environment = os.environ | {"WILLIS_RAY_ADDRESS": ray_head.address}
    first = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    before = _kill_after_one_trial(first, folder)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return Found(folder / "out", done.stdout, before)


def _kill_after_one_trial(process: subprocess.Popen[bytes], folder: Path) -> list[str]:
    """Lines of the epochs that were trained before the kill, by the trial that had ended."""
    deadline = time.monotonic() + 120
    try:
        while time.monotonic() < deadline and process.poll() is None:
            ended = list(folder.glob(".out.search/*/trial-000/ended.json"))
            if ended:
                return (ended[0].parent / "epochs.jsonl").read_text().splitlines()
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    return pytest.fail(f"no trial ended; exit code {process.returncode}")


def test_a_killed_search_goes_on_and_repeats_no_trial_that_had_ended(found: Found) -> None:
    epochs = pd.read_csv(found.out / "epochs.csv")
    seconds = epochs.loc[epochs["trial"] == 0, "seconds"].tolist()
    assert seconds == pytest.approx([json.loads(line)["seconds"] for line in found.before], rel=1e-12)
    assert not list(found.out.parent.glob(".out.search"))


def test_a_trial_that_is_behind_one_from_before_the_kill_is_stopped_early(found: Found) -> None:
    trials = pd.read_csv(found.out / "trials.csv").set_index("learning_rate")
    assert trials["fate"].to_dict() == {TRAIN.learning_rate: "finished", SLOW: "stopped", BROKEN: "failed"}
    assert trials["epochs"][SLOW] == 1 and trials["epochs"][TRAIN.learning_rate] == 3


def test_a_trial_that_fails_is_recorded_with_its_reason_and_the_search_goes_on(found: Found) -> None:
    (reason,) = found.summary.failures.values()
    assert "loss is" in reason and found.summary.num_failed == 1


def test_the_best_trial_can_be_pasted_into_params_yaml(found: Found) -> None:
    text = (found.out / "best.yaml").read_text()
    assert YAML(typ="safe").load(text) == {"train": {"learning_rate": TRAIN.learning_rate}}
    assert "the test split was not read" in text and "not for diagnosis" in text
    assert found.summary.best_value == found.summary.first_value


def test_the_output_holds_a_picture_and_standard_output_the_summary_alone(found: Found) -> None:
    assert (found.out / "trials.png").read_bytes().startswith(b"\x89PNG")
    assert TuneSummary.model_validate_json(found.printed) == found.summary


def test_a_finished_search_is_not_run_again_and_another_one_is(found: Found, tiny_ingest: TinyCohort) -> None:
    ingest, features = tiny_ingest.ingest, tiny_ingest.features
    assert tune(ingest, features, found.out, TRAIN, TUNE, NOWHERE) == found.summary
    for train, params in (
        (TRAIN.model_copy(update={"seed": 8}), TUNE),
        (TRAIN, TUNE.model_copy(update={"reduction_factor": 3})),
    ):
        with pytest.raises(RayError, match="no Ray cluster answers"):
            tune(ingest, features, found.out, train, params, NOWHERE)
    assert found.summary.num_trials == 3
