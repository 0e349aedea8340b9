"""The monitoring pipeline: one window of the prediction log against the champion's reference.

`python -m pipelines.monitoring --out monitoring.yaml` compiles it; a cluster runs it on a schedule.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from kfp import compiler, dsl

from components.monitor import monitor
from pipelines.cluster import on_cluster
from willis.params import Params, load_params


class Outputs(NamedTuple):
    """What the pipeline leaves behind."""

    drift: dsl.Artifact


def graph(params: Params, *, cluster: bool = True) -> Callable[..., Any]:
    """Build the pipeline function; never cached, since outcomes arrive after their predictions."""
    section = params.monitor.model_dump(mode="json")

    @dsl.pipeline(name="willis-monitoring", description="Drift of one window. For research only.")
    def monitoring(since: str, until: str) -> Outputs:
        task = monitor(since=since, until=until, params=section)
        task.set_caching_options(enable_caching=False)
        if cluster:
            on_cluster(task)
        return Outputs(drift=task.outputs["drift"])

    return monitoring


def main() -> None:
    """Compile to YAML."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/monitoring.yaml"), help="YAML file to write")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="default arguments")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(graph(load_params(arguments.params)), str(arguments.out))
    print(f"{arguments.out}: schedule it as a recurring run")


if __name__ == "__main__":
    main()
