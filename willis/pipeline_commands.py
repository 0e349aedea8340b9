"""`willis pipeline`: why a step would run again, and the submission to a cluster."""

from pathlib import Path
from typing import Annotated

import typer

from willis.summaries import show

pipeline_app = typer.Typer(help="Why a step runs again; submission to a cluster.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print the answer as JSON, for machines.")]


@pipeline_app.command("why")
def pipeline_why(
    step: str,
    run: Annotated[Path, typer.Option(help="Folder of the local runs.")] = Path("build/demo/pipeline"),
    params: Annotated[
        Path | None,
        typer.Option("--params", help="Parameters to compare with.", show_default="the run's own"),
    ] = None,
    cohort: Annotated[
        Path | None, typer.Option("--cohort", help="Cohort to compare with.", show_default="the run's own")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say why a step would run again, or why it is recognised as done."""
    from willis.provenance import explain

    show(explain(step, run, params, cohort), as_json)


@pipeline_app.command("submit")
def pipeline_submit(
    package: Annotated[Path, typer.Argument(help="YAML from `python -m pipelines.training --out FILE`.")],
    host: Annotated[str, typer.Option(help="KFP host, https unless it is loopback.")],
    cohort: Annotated[str, typer.Option(help="Cohort as the cluster sees it.")],
    cohort_digest: Annotated[
        str | None,
        typer.Option(
            help="Word that changes with the cohort's files.", show_default="computed, where readable"
        ),
    ] = None,
    experiment: Annotated[str, typer.Option()] = "willis",
    as_json: AsJson = False,
) -> None:
    """Submit a compiled pipeline to a KFP host (token: WILLIS_KFP_TOKEN)."""
    from willis.settings import settings
    from willis.submission import submit

    show(submit(package, host, cohort, experiment, settings(), cohort_digest), as_json)
