"""`dvc repro` as a person types it: the whole graph, then nothing, then what a changed parameter reaches."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.fixtures.ray import RayHead
from willis.cohort.synthetic import synthesise
from willis.params import CohortParams
from willis.provenance import GRAPH

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
REPOSITORY = Path(__file__).resolve().parents[2]
CHECKED_OUT = (
    "willis",
    "feature_repo",
    "dvc.yaml",
    ".dvcignore",
    ".gitignore",
    ".dvc/config",
    ".dvc/.gitignore",
)
STAGES = [step for step in GRAPH if step != "version"]
RAN = re.compile(r"^Running stage '(\w+)'", re.MULTILINE)
SMALL: dict[str, dict[str, object]] = {
    "ingest": {
        "spacing_mm": [4.0, 4.0, 8.0], "shape": [44, 52, 20], "num_workers": 2,
        "splits": {"train": 0.35, "validation": 0.2, "calibration": 0.15, "test": 0.3},
    },
    "report": {"writer": "facts"},
    "train": {
        "epochs": 1, "batch_size": 8, "width": 16, "contrast_width": 8, "fusion_heads": 2, "num_workers": 1
    },
    "evaluate": {"num_bootstrap": 100, "num_permutations": 1},
    "promote": {"min_auc": 0.0, "max_ece": 1.0},
}  # fmt: skip


class Checkout:
    """A git and DVC checkout with a cohort, in which commands run as in a terminal."""

    def __init__(self, root: Path, ray_address: str) -> None:
        self.root = root
        kept = {name: value for name, value in os.environ.items() if not name.startswith("WILLIS_")}
        commands = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = kept | {
            "PATH": commands, "WILLIS_RAY_ADDRESS": ray_address, "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(root / "build" / "dvc-site"),
        }  # fmt: skip

    def run(self, *words: str) -> str:
        done = subprocess.run(
            words, cwd=self.root, env=self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.fail(
                f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"[-6000:]
            )
        return done.stdout

    def repro(self) -> list[str]:
        """Run `dvc repro`; the stages that really ran."""
        return RAN.findall(self.run("dvc", "repro"))


def write_params(root: Path, changes: dict[str, dict[str, object]]) -> None:
    """The repository's params.yaml with some values changed."""
    yaml = YAML()
    params = yaml.load(REPOSITORY / "params.yaml")
    for section, values in changes.items():
        params[section].update(values)
    yaml.dump(params, root / "params.yaml")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, ray_head: RayHead) -> Checkout:
    """Everything as after a clone, with a version of a small synthetic cohort."""
    root = tmp_path_factory.mktemp("checkout")
    for name in CHECKED_OUT:
        (root / name).parent.mkdir(exist_ok=True)
        copied = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
        copied(REPOSITORY / name, root / name)
    write_params(root, SMALL)
    synthesise(
        root / "data" / "cohort", CohortParams(num_patients=32, seed=2, ceiling_draws=1000, num_workers=2)
    )
    made = Checkout(root, ray_head.address)
    made.run("git", "init", "--quiet")
    made.run("git", "add", ".")
    made.run("git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "--quiet", "-m", "All")
    made.run("willis", "version", "--cohort", "data/cohort", "--out", "data/version")
    return made


def test_the_graph_runs_whole_then_not_at_all_then_from_what_changed(checkout: Checkout) -> None:
    assert sorted(checkout.repro()) == sorted(STAGES)
    assert (checkout.root / "data" / "promote" / "promotion.json").is_file()
    assert checkout.repro() == []
    write_params(checkout.root, SMALL | {"train": SMALL["train"] | {"epochs": 2}})
    assert checkout.repro() == ["train", "evaluate", "promote"]
    assert checkout.repro() == []
