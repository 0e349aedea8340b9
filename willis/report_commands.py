"""`willis reports`: the server behind the report writer, and what people do around reports."""

from pathlib import Path
from typing import Annotated

import typer

reports_app = typer.Typer(
    help="The server behind the report writer, and what people do around reports.", no_args_is_help=True
)

ParamsFile = Annotated[Path, typer.Option("--params", help="params.yaml to read the section `report` from.")]


@reports_app.callback()
def reports() -> None:
    """Keep `willis reports` a group, however many commands it has."""


@reports_app.command("serve")
def reports_serve(
    params: ParamsFile = Path("params.yaml"),
    log: Annotated[Path, typer.Option(help="File for what vLLM prints.")] = Path("build/vllm.log"),
) -> None:
    """Serve the model of params.yaml with vLLM at WILLIS_REPORT_URL until Ctrl-C."""
    from willis.params import load_params
    from willis.reports.server import serve_until_stopped
    from willis.settings import settings

    serve_until_stopped(load_params(params).report, settings(), log=log, on_ready=typer.echo)


@reports_app.command("train-reader")
def reports_train_reader(
    out: Annotated[Path | None, typer.Option(help="Folder of the reader; the packaged one if unset.")] = None,
    studies_dir: Annotated[
        Path, typer.Option("--studies-dir", help="Where rendered studies are kept, to go on after a stop.")
    ] = Path("build/reader/studies"),
    studies: Annotated[int, typer.Option(min=16, help="How many synthetic studies to train on.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of studies, weights and order.")] = 20260,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Train the embedded reader from scratch on synthetic studies that no cohort holds."""
    from willis.reports.model_files import FOLDER
    from willis.reports.train_reader import train_reader
    from willis.summaries import show

    show(train_reader(out or FOLDER, studies_dir, num_studies=studies, seed=seed, device=device), as_json)


@reports_app.command("look")
def reports_look(
    ingest: Annotated[Path, typer.Option(help="Output of `willis ingest`.")],
    reports: Annotated[Path, typer.Option(help="Output of `willis report` for it.")],
    out: Annotated[Path, typer.Option(help="Page to write.")] = Path("reports.html"),
    studies: Annotated[int, typer.Option(min=1, help="How many to show, the most doubtful first.")] = 60,
) -> None:
    """Write one page that shows each study's pictures beside its report, with what contradicts marked."""
    from willis.reports.look import look

    typer.echo(look(ingest, reports, out, num_studies=studies))
