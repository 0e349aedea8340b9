"""The `willis` command: one sub-command per step, and what people do around them.

Nothing heavy is imported before a sub-command runs, so that `willis --help` answers at once.
"""

import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape

from willis.cohort_commands import cohort_app
from willis.errors import WillisError
from willis.outputs import NO_SPACE
from willis.pipeline_commands import pipeline_app
from willis.report_commands import reports_app
from willis.settings import settings
from willis.summaries import show as _show

if TYPE_CHECKING:
    from willis.params import Params

app = typer.Typer(
    help="Stroke outcome from MRI, clinical table and report. For research, not for diagnosis.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="Start with `make demo`; then docs/operate.md, docs/integrate.md, docs/watch.md, docs/extend.md.",
)
app.add_typer(cohort_app, name="cohort")
app.add_typer(pipeline_app, name="pipeline")
app.add_typer(reports_app, name="reports")

ParamsFile = Annotated[Path, typer.Option("--params", help="params.yaml to read the step's section from.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as JSON, for machines.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to write; it appears whole or not at all.")]
Cohort = Annotated[Path, typer.Option("--cohort", help="Canonical BIDS cohort.")]
Ingested = Annotated[Path, typer.Option("--ingest", help="Output folder of `willis ingest`.")]
Features = Annotated[Path, typer.Option("--features", help="Output folder of `willis featurize`.")]

DEFAULT_PARAMS = Path("params.yaml")
EXIT_ERROR, EXIT_DRIFT = 2, 3


def main() -> None:
    """Run the command; a full disk and what Willis raises on purpose are messages, not tracebacks."""
    try:
        app()
    except (WillisError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in NO_SPACE:
            raise
        todo = "; free some space and run the same command again" if isinstance(error, OSError) else ""
        text = f"[bold red]{type(error).__name__}[/]: {escape(f'{error}{todo}')}"
        Console(stderr=True).print(text, highlight=False, soft_wrap=True)
        sys.exit(EXIT_ERROR)


def _params(path: Path) -> "Params":
    from willis.params import load_params

    return load_params(path)


@app.command()
def version(cohort: Cohort, out: Out, params: ParamsFile = DEFAULT_PARAMS, as_json: AsJson = False) -> None:
    """Add the cohort to DVC, push it, and prove the push."""
    from willis.steps.version import version as step

    _show(step(cohort, out, _params(params).version, settings()), as_json)


@app.command()
def ingest(
    cohort: Cohort,
    out: Out,
    strict: Annotated[bool, typer.Option(help="Fail if any study is broken.")] = False,
    params: ParamsFile = DEFAULT_PARAMS,
    as_json: AsJson = False,
) -> None:
    """Check every study and row, bring volumes to one grid, measure facts, write splits and shards."""
    from willis.steps.ingest import ingest as step

    _show(step(cohort, out, _params(params).ingest, strict=strict), as_json)


@app.command()
def report(ingest: Ingested, out: Out, params: ParamsFile = DEFAULT_PARAMS, as_json: AsJson = False) -> None:
    """Write and ground a report for every study."""
    from willis.steps.report import report as step

    _show(step(ingest, out, _params(params).report, settings()), as_json)


@app.command()
def featurize(
    ingest: Ingested,
    reports: Annotated[Path, typer.Option("--reports", help="Output folder of `willis report`.")],
    out: Out,
    params: ParamsFile = DEFAULT_PARAMS,
    as_json: AsJson = False,
) -> None:
    """Fill the feature store and write the point-in-time training table."""
    from willis.steps.featurize import featurize as step

    _show(step(ingest, reports, out, _params(params).featurize, settings()), as_json)


@app.command()
def pretrain(
    ingest: Ingested, out: Out, params: ParamsFile = DEFAULT_PARAMS, as_json: AsJson = False
) -> None:
    """Pre-train the image encoder without labels, on the Ray cluster of WILLIS_RAY_ADDRESS."""
    from willis.steps.pretrain import pretrain as step

    _show(step(ingest, out, _params(params).pretrain, settings()), as_json)


@app.command()
def train(
    ingest: Ingested,
    features: Features,
    out: Out,
    pretrained: Annotated[Path | None, typer.Option(help="Output folder of `willis pretrain`.")] = None,
    params: ParamsFile = DEFAULT_PARAMS,
    as_json: AsJson = False,
) -> None:
    """Train the trimodal network on the Ray cluster of WILLIS_RAY_ADDRESS."""
    from willis.steps.train import train as step

    _show(step(ingest, features, out, _params(params).train, settings(), pretrained), as_json)


@app.command()
def tune(
    ingest: Ingested,
    features: Features,
    out: Out,
    params: ParamsFile = DEFAULT_PARAMS,
    as_json: AsJson = False,
) -> None:
    """Search for better values of `train` on the Ray cluster; the test split is never read.

    The section `tune` of params.yaml names keys of `train` and what to try, as
    `learning_rate: {log_uniform: [3e-4, 3e-3]}`,
    `dropout: {uniform: [0.1, 0.5]}` or `width: {choices: [64, 128]}`.

    Trial 0 is `train` as it stands. Trials that fall behind on validation are
    stopped early (ASHA). A search that was killed goes on when started again.

    Paste best.yaml into params.yaml; then `willis train` and, once,
    `willis evaluate`. For research, not for diagnosis.
    """
    from willis.steps.tune import tune as step

    loaded = _params(params)
    _show(step(ingest, features, out, loaded.train, loaded.tune, settings()), as_json)


@app.command()
def evaluate(
    ingest: Ingested,
    features: Features,
    out: Out,
    cohort: Annotated[
        Path | None, typer.Option("--cohort", help="Cohort, for the truth behind the ceiling.")
    ] = None,
    model: Annotated[Path | None, typer.Option("--model", help="Output folder of `willis train`.")] = None,
    folds: Annotated[Path | None, typer.Option(help="TSV: task, repeat, fold, participant_id.")] = None,
    by: Annotated[
        Literal["site", "period"] | None,
        typer.Option(help="Test each site by the others, or each period by those before it."),
    ] = None,
    task: Annotated[
        str, typer.Option(help="Task in the folds file: poor_outcome or nihss.")
    ] = "poor_outcome",
    repeats: Annotated[int | None, typer.Option(help="Use the first N repeats of the folds file.")] = None,
    params: ParamsFile = DEFAULT_PARAMS,
    as_json: AsJson = False,
) -> None:
    """Judge the model on the test split; with --folds or --by, train and test it beside rivals (resumes)."""
    from willis.errors import ParamsError
    from willis.evaluation.folds import evaluate_folds
    from willis.evaluation.patients import Cohort
    from willis.evaluation.plans import NIHSS, folds_by, read_folds
    from willis.evaluation.severity import evaluate_severity
    from willis.steps.evaluate import evaluate as step

    loaded = _params(params)
    if cohort and model and not (folds or by):
        _show(step(cohort, ingest, features, model, out, loaded.evaluate), as_json)
        return
    if folds and not by:
        plan = read_folds(folds, task, Cohort.read(ingest, features).frame, repeats)
        if task == NIHSS:
            _show(evaluate_severity(ingest, features, plan, out, loaded.train), as_json)
            return
    elif by and not folds:
        plan = folds_by(by, Cohort.read(ingest, features).frame)
    else:
        raise ParamsError(
            "evaluate needs --cohort and --model for the test split, or one of --folds FILE, --by site and "
            "--by period"
        )
    _show(evaluate_folds(ingest, features, plan, out, loaded.train, pretrain=loaded.pretrain), as_json)


@app.command("learning-curve")
def learning_curve(
    ingest: Ingested,
    features: Features,
    out: Out,
    labels: Annotated[list[int], typer.Option(min=10, help="Patients to learn from; give it several times.")],
    repeats: Annotated[int, typer.Option(min=1, help="Draws of each number; their AUCs are averaged.")] = 3,
    params: ParamsFile = DEFAULT_PARAMS,
    as_json: AsJson = False,
) -> None:
    """Train on ever more patients beside rivals: what would more labelled patients bring? (resumes)

    For example: willis learning-curve --ingest data/ingest --features data/featurize
    --out build/curve --labels 50 --labels 100 --labels 200
    """
    from willis.evaluation.learning_curve import learning_curve as measure

    loaded = _params(params)
    _show(measure(ingest, features, labels, repeats, out, loaded.train, pretrain=loaded.pretrain), as_json)


@app.command()
def promote(
    to: Annotated[
        str | None, typer.Option("--to", help="Roll back: point the alias at this version.")
    ] = None,
    version: Annotated[
        Path | None, typer.Option("--version", help="Output folder of `willis version`.")
    ] = None,
    ingest: Annotated[Path | None, typer.Option("--ingest")] = None,
    features: Annotated[Path | None, typer.Option("--features")] = None,
    model: Annotated[Path | None, typer.Option("--model")] = None,
    evaluation: Annotated[Path | None, typer.Option("--evaluation")] = None,
    out: Annotated[Path | None, typer.Option("--out")] = None,
    params: ParamsFile = DEFAULT_PARAMS,
    as_json: AsJson = False,
) -> None:
    """Write the bundle to the registry; move the alias only if the gate holds."""
    from willis.errors import ParamsError
    from willis.steps.promote import promote as step
    from willis.steps.promote import rollback

    section = _params(params).promote
    if to is not None:
        _show(rollback(to, section, settings()), as_json)
        return
    if not (version and ingest and features and model and evaluation and out):
        raise ParamsError(
            "promote needs --version --ingest --features --model --evaluation --out, or --to VERSION"
        )
    _show(step(version, ingest, features, model, evaluation, out, section, settings()), as_json)


@app.command()
def deploy(
    promotion: Annotated[Path | None, typer.Option(help="Output folder of `willis promote`.")] = None,
    params: ParamsFile = DEFAULT_PARAMS,
    as_json: AsJson = False,
) -> None:
    """Put the application to the Ray cluster and wait until it is healthy."""
    from willis.steps.deploy import deploy as step

    loaded = _params(params)
    _show(step(promotion, loaded.deploy, settings(), loaded.ingest, loaded.report), as_json)


@app.command()
def monitor(
    out: Out,
    since: Annotated[str | None, typer.Option(help="Start of the window, ISO 8601 with offset.")] = None,
    until: Annotated[str | None, typer.Option(help="End of the window, ISO 8601 with offset.")] = None,
    params: ParamsFile = DEFAULT_PARAMS,
    as_json: AsJson = False,
) -> None:
    """Compare a window of the prediction log with the bundle's reference; exits 3 on drift."""
    from willis.steps.monitor import monitor as step

    summary = step(
        out,
        _params(params).monitor,
        settings(),
        since=_instant(since, "--since"),
        until=_instant(until, "--until"),
    )
    _show(summary, as_json)
    if summary.drift:
        raise typer.Exit(EXIT_DRIFT)


def _instant(text: str | None, option: str) -> datetime | None:
    from willis.errors import ParamsError

    if text is None:
        return None
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        instant = None
    if instant is None or instant.tzinfo is None:
        raise ParamsError(f"{option} is {text!r}; give ISO 8601 with an offset, as 2026-05-01T08:00:00+00:00")
    return instant


@app.command()
def predict(
    cohort: Cohort,
    bundle: Annotated[str, typer.Option(help="Bundle version or alias in the registry.")] = "champion",
    params: ParamsFile = DEFAULT_PARAMS,
    as_json: AsJson = False,
) -> None:
    """Predict patients the model has never seen, from files in a canonical cohort."""
    from willis.casework import predict_cohort

    predictions = predict_cohort(cohort, bundle, _params(params), settings())
    if as_json:
        for prediction in predictions:
            typer.echo(prediction.model_dump_json())
        return
    from willis.summaries import predictions_table

    Console().print(predictions_table(predictions))


@app.command()
def lineage(prediction_id: str, as_json: AsJson = False) -> None:
    """Print the chain from a prediction back to the cohort it was learned from."""
    from willis.lineage import lineage as chain
    from willis.lineage import render_lineage

    found = chain(prediction_id, settings())
    typer.echo(found.model_dump_json(indent=2)) if as_json else Console().print(render_lineage(found))


@app.command()
def purge(as_json: AsJson = False) -> None:
    """Erase predictions that have outlived WILLIS_RETENTION_DAYS; run it daily."""
    from willis.forget import purge as erase

    _show(erase(settings()), as_json)


@app.command()
def forget(
    patient: str,
    cohort: Annotated[
        Path | None, typer.Option("--cohort", help="Cohort to erase the patient from, too.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Erase a patient from cohort, features, prediction log and bundle samples."""
    from willis.forget import forget as erase

    _show(erase(patient, settings(), cohort=cohort), as_json)
