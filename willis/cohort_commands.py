"""`willis cohort`: make, import and look at cohorts."""

from pathlib import Path
from typing import Annotated

import typer

from willis.settings import settings
from willis.summaries import show

cohort_app = typer.Typer(help="Make, import and look at cohorts.", no_args_is_help=True)
import_app = typer.Typer(help="Bring patients in as a canonical BIDS cohort.", no_args_is_help=True)
cohort_app.add_typer(import_app, name="import")

AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as JSON, for machines.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to write; it appears whole or not at all.")]
Cohort = Annotated[Path, typer.Option("--cohort", help="Canonical BIDS cohort.")]
ParamsFile = Annotated[Path, typer.Option("--params", help="params.yaml to read the step's section from.")]

DEFAULT_PARAMS = Path("params.yaml")


@cohort_app.command("synthesise")
def cohort_synthesise(
    out: Out,
    patients: Annotated[int | None, typer.Option(help="How many patients.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same bytes.")] = None,
    preset: Annotated[str | None, typer.Option(help="published or interacting (docs/cohort.md).")] = None,
    scanners: Annotated[str | None, typer.Option(help="Comma-separated; `new` is kept for drift.")] = None,
    without_infarct: Annotated[
        float | None, typer.Option(help="Share of studies without an infarct.")
    ] = None,
    purpose: Annotated[str, typer.Option(help="evaluation, stream, reader or benchmark.")] = "evaluation",
    params: ParamsFile = DEFAULT_PARAMS,
    as_json: AsJson = False,
) -> None:
    """Make the synthetic cohort whose best possible result is known."""
    from willis.cohort.synthetic import synthesise
    from willis.params import CohortParams, load_params, parse_section

    given = {
        "num_patients": patients,
        "seed": seed,
        "preset": preset,
        "scanners": tuple(scanners.split(",")) if scanners else None,
        "without_infarct": without_infarct,
    }
    section = load_params(params).cohort.model_dump() | {k: v for k, v in given.items() if v is not None}
    show(synthesise(out, parse_section(CohortParams, section, "command line"), purpose=purpose), as_json)


@cohort_app.command("look")
def cohort_look(
    cohort: Cohort,
    out: Annotated[Path, typer.Option("--out", help="PNG to write.")] = Path("contact-sheet.png"),
    patients: Annotated[int, typer.Option(help="How many patients to show.")] = 12,
) -> None:
    """Draw a contact sheet, so that people can see that they are brains."""
    from willis.cohort.look import contact_sheet

    typer.echo(contact_sheet(cohort, out, num_patients=patients))


@import_app.command("soop")
def import_soop_command(source: Path, out: Out, as_json: AsJson = False) -> None:
    """Import a clone of the public derived SOOP set (docs/real-patients.md)."""
    from willis.cohort.soop import import_soop

    show(import_soop(source, out), as_json)


@import_app.command("bids")
def import_bids_command(source: Path, out: Out, as_json: AsJson = False) -> None:
    """Import a BIDS tree: the shapes of SOOP, ISLES'22 and ISLES'24 are known."""
    from willis.cohort.bids_import import import_bids

    show(import_bids(source, out), as_json)


@import_app.command("dicom")
def import_dicom_command(
    source: Path,
    out: Out,
    table: Annotated[Path | None, typer.Option(help="The hospital's clinical table, CSV or TSV.")] = None,
    as_json: AsJson = False,
) -> None:
    """Import a folder of DICOM files, de-identified (keyed by WILLIS_PSEUDONYM_KEY)."""
    from willis.cohort.dicom import import_dicom

    show(import_dicom(source, out, settings().pseudonym_key.get_secret_value(), table=table), as_json)


@cohort_app.command("pseudonym")
def cohort_pseudonym(patient_id: str) -> None:
    """Print the id under which the intake filed a hospital's patient (keyed by WILLIS_PSEUDONYM_KEY)."""
    from willis.cohort.deidentify import patient_pseudonym

    typer.echo(patient_pseudonym(patient_id, settings().pseudonym_key.get_secret_value()))
