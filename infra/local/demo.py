"""`make demo`: the whole circle on this machine, from patients to drift.

    cohort -> [version ingest report featurize pretrain train evaluate promote] -> deploy -> streams
              `----------------- the compiled KFP pipeline ------------------'     -> monitor -> page

Every stage is recognised as done when nothing that it reads has changed; a run that was killed goes on from
the last finished stage.
"""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from infra.local.cost import Meter, metered
from infra.local.processes import MARK, only_one, require_free, sweep
from infra.local.stages import StageRun
from willis.errors import StepError, WillisError

REPOSITORY = Path(__file__).resolve().parents[2]
BUILD = REPOSITORY / "build"
MIN_FREE_BYTES = 3_000_000_000
console = Console()


@dataclass
class Journal:
    """What the run has done so far: each stage's seconds and whether it was done already."""

    stages: dict[str, StageRun] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[bool], None]]:
        """Time one stage under a spinner; the caller says whether it was cached."""
        started, cached = time.monotonic(), False

        def say(was_cached: bool) -> None:
            nonlocal cached
            cached = was_cached

        with console.status(f"{name} ..."):
            yield say
        self.add(name, time.monotonic() - started, cached)

    def add(self, name: str, seconds: float, cached: bool) -> None:
        """Record a finished stage and print its line."""
        self.stages[name] = StageRun(seconds=round(seconds, 2), cached=cached)
        state = "[dim]done before[/]" if cached else f"{seconds:6.1f} s"
        console.print(f"  [green]✓[/] {name:<22} {state}")


def default_root(data: str) -> Path:
    """Folder of a source's demo: each source has a registry, a log and a feature store of its own.

    A bundle of one source cannot be held against the champion of another: they read other sequences.
    """
    kind, _, path = data.partition(":")
    return BUILD / ("demo" if not path else f"demo-{kind}-{Path(path).name}")


def configure(root: Path) -> None:
    """Point every setting that the caller left open below the demo's own folder, before anything reads it."""
    defaults = {
        "WILLIS_REGISTRY": root / "registry",
        "WILLIS_OBJECT_STORE": root / "objects",
        "WILLIS_DVC_REMOTE": root / "dvc-remote",
        "WILLIS_DATABASE_URL": f"sqlite:///{root / 'predictions.db'}",
        "WILLIS_FEAST_DIR": root / "feast",
        "WILLIS_MONITOR_DIR": root / "monitoring",
        "WILLIS_BUNDLE_CACHE": root / "bundle-cache",
        "WILLIS_METRICS_DIR": root / "metrics",
        "WILLIS_REPORT_STORE": root / "reports.sqlite",
        "WILLIS_FEATURE_REPO": REPOSITORY / "feature_repo",
        "WILLIS_VLLM_PYTHON": REPOSITORY / ".venv-vllm" / "bin" / "python",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, str(value))
    os.environ.update({MARK: str(root), "PYTHONPATH": str(REPOSITORY)})
    os.environ.setdefault("PYTHONWARNINGS", "ignore")


def main() -> None:
    """Run the demo and end with its summary, or with one clear error."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="synthetic", help="synthetic, soop:PATH or bids:PATH")
    parser.add_argument(
        "--root", type=Path, help="folder for all that is written (build/demo, build/demo-...)"
    )
    parser.add_argument("--params", type=Path, default=REPOSITORY / "params.yaml")
    parser.add_argument("--patients", type=int, default=None, help="size of the synthetic cohort")
    parser.add_argument("--stream-patients", type=int, default=80, help="patients in each stream")
    arguments = parser.parse_args()
    root = (arguments.root or default_root(arguments.data)).resolve()
    try:
        with only_one(root), metered(root) as meter:
            left = sweep(root)
            if left:
                console.print(f"ended {left} processes that an earlier run had left behind")
            _require_space(root)
            configure(root)
            _run(root, arguments, meter)
    except WillisError as error:
        console.print(f"[bold red]{type(error).__name__}[/]: {error}", highlight=False, soft_wrap=True)
        sys.exit(2)


def _require_space(root: Path) -> None:
    free = shutil.disk_usage(root).free
    if free < MIN_FREE_BYTES and not (root / "summary.json").exists():
        raise StepError(
            f"{free / 1e9:.1f} GB are free below {root}; the demo needs {MIN_FREE_BYTES / 1e9:.0f} GB: "
            "make room or pass --root"
        )


def _run(root: Path, arguments: argparse.Namespace, meter: Meter) -> None:
    from infra.local.circle import run_circle
    from infra.local.source import source_of
    from willis.params import load_params
    from willis.provenance import RunInputs, record_inputs
    from willis.settings import settings

    require_free(int(settings().serve_bind.rpartition(":")[2]), "WILLIS_SERVE_BIND")
    params = load_params(arguments.params)
    source = source_of(arguments.data, root, params, arguments.patients, arguments.stream_patients)
    inputs = RunInputs(
        params_file=arguments.params.resolve(),
        written=params.model_dump(mode="json"),
        used=source.params.model_dump(mode="json"),
        cohort=source.cohort,
        synthesised=arguments.data == "synthetic",
    )
    record_inputs(root / "pipeline", inputs)
    console.print(f"[bold]Willis[/] on {source.title}. For research, not for diagnosis.\n")
    summary = run_circle(source, root, Journal(), meter)
    summary.show(console)


if __name__ == "__main__":
    main()
