"""The local runner on two steps that cost nothing: `python -m tests.cheap_pipeline RUN COHORT`.

The second step waits until the file RUN/gate is there, so that a test can kill the run before.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from kfp import dsl

from pipelines import local
from willis.params import Params


@dsl.component(base_image="python", install_kfp_package=False)
def version(cohort_digest: str, data: dsl.Output[dsl.Dataset]):  # type: ignore[no-untyped-def]
    from pathlib import Path

    Path(data.path).mkdir(parents=True)


@dsl.component(base_image="python", install_kfp_package=False)
def ingest(gate: str, data: dsl.Input[dsl.Dataset], studies: dsl.Output[dsl.Dataset]):  # type: ignore[no-untyped-def]
    import time
    from pathlib import Path

    while not Path(gate).exists():
        time.sleep(0.05)
    Path(studies.path).mkdir(parents=True)


class Outputs(NamedTuple):
    data: dsl.Dataset
    studies: dsl.Dataset


def main(run: Path, cohort: Path) -> None:
    def graph(params: Params, **_: Any) -> Any:
        @dsl.pipeline(name="cheap")
        def cheap(cohort: str, cohort_digest: str) -> Outputs:
            first = version(cohort_digest=cohort_digest)
            second = ingest(gate=str(run / "gate"), data=first.output)
            return Outputs(data=first.output, studies=second.output)

        return cheap

    local.graph, local.GRAPH = graph, {"version": (), "ingest": ("version",)}  # type: ignore[assignment]
    steps = local.run_training(cohort, Params(), run, lambda step, state: None)
    print(json.dumps({name: dataclasses.asdict(step) for name, step in steps.items()}, default=str))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
