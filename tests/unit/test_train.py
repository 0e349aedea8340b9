"""The step `train` without a cluster: what it writes when the training is done."""

import json
import subprocess
from pathlib import Path

import pytest

import willis
from tests.file_limit import files_of_at_most
from tests.fixtures.arrays import TinyCohort
from willis.errors import StepError
from willis.models.lineage import read_lineage
from willis.params import TrainParams
from willis.revision import code_revision
from willis.settings import Settings
from willis.steps.train import TrainSummary, make_job, train
from willis.training.loop import Job, Tick, World, fit

PARAMS = TrainParams(epochs=1, batch_size=32, width=32, contrast_width=16)
NOWHERE = Settings(ray_address="127.0.0.1:1")


def test_a_full_disk_at_the_weights_is_said_and_nothing_is_trained_twice(
    tiny_ingest: TinyCohort, tmp_path: Path
) -> None:
    fit(make_job(tiny_ingest.ingest, tiny_ingest.features, tmp_path, PARAMS), World())
    message = r"model\.safetensors cannot be written: .*File too large.*free some space"
    with pytest.raises(StepError, match=message), files_of_at_most(20_000):
        train(tiny_ingest.ingest, tiny_ingest.features, tmp_path, PARAMS, NOWHERE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "embeddings"]
    train(tiny_ingest.ingest, tiny_ingest.features, tmp_path, PARAMS, NOWHERE)
    assert (tmp_path / "model.safetensors").stat().st_size > 20_000
    assert (tmp_path / "train.json").exists()


def commit(repository: Path, text: str) -> str:
    """Commit a change of the code; return the revision."""
    (repository / "code.py").write_text(text)
    for words in (["init", "-q"], ["add", "code.py"], ["commit", "-qm", text]):
        name = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", "-C", repository, *name, *words], check=True)
    revision, dirty = code_revision()
    assert revision is not None and not dirty
    return revision


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout that the code takes for its own."""
    folder = tmp_path / "repository"
    folder.mkdir()
    monkeypatch.setattr(willis, "__file__", str(folder / "willis" / "__init__.py"))
    return folder


def train_here(
    cohort: TinyCohort, out: Path, monkeypatch: pytest.MonkeyPatch, params: TrainParams = PARAMS
) -> TrainSummary:
    """The step with its loop in this process."""
    monkeypatch.setattr("willis.steps.train.train_on_cluster", lambda job, *_: fit(job, World()))
    return train(cohort.ingest, cohort.features, out, params, NOWHERE)


def test_the_lineage_names_the_code_that_trained_not_the_code_that_saw_the_cohort(
    tiny_ingest: TinyCohort, tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = {"md5": "abc.dir", "size_bytes": 7, "num_files": 3}
    old = commit(repository, "when the cohort was pushed")
    (tmp_path / "version.json").write_text(json.dumps(cohort | {"git_revision": old, "git_dirty": False}))
    new = commit(repository, "when the network was trained")
    model = tmp_path / "model"
    train_here(tiny_ingest, model, monkeypatch)
    later = commit(repository, "when the bundle was promoted")
    lineage = read_lineage(tmp_path, tiny_ingest.features, model, "0")
    assert (lineage.git_revision, lineage.git_dirty) == (new, False)
    assert len({old, new, later}) == 3


def test_a_finished_run_keeps_the_code_that_trained_it(
    tiny_ingest: TinyCohort, tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = commit(repository, "first")
    (repository / "code.py").write_text("not committed")
    assert train_here(tiny_ingest, tmp_path / "model", monkeypatch).git_dirty
    commit(repository, "second")
    again = train(tiny_ingest.ingest, tiny_ingest.features, tmp_path / "model", PARAMS, NOWHERE)
    assert (again.git_revision, again.git_dirty) == (trained, True)


def test_a_run_that_goes_on_under_another_commit_is_not_clean(
    tiny_ingest: TinyCohort, tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, model = PARAMS.model_copy(update={"epochs": 2}), tmp_path / "model"

    def killed(job: Job, *_: object) -> None:
        def on_tick(tick: Tick) -> None:
            if tick.epoch == 1:
                raise KeyboardInterrupt

        fit(job, World(), on_tick)

    commit(repository, "when the run began")
    monkeypatch.setattr("willis.steps.train.train_on_cluster", killed)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_ingest.ingest, tiny_ingest.features, model, params, NOWHERE)
    last = commit(repository, "when it went on")
    summary = train_here(tiny_ingest, model, monkeypatch, params)
    assert summary.epochs == 2
    assert (summary.git_revision, summary.git_dirty) == (last, True)
