"""Import of the public derived SOOP set: `neurolabusc/StrokeOutcomeOptimizationProjectDemo`, or its layout.

    NIfTI/bwsrsub-N_lesion.nii.gz    expert's lesion in standard space  -> derivatives/lesion_masks/
    PNG/rsub-N_lesion.nii.png        three FLAIR planes, lesion in red  -> sub-*/anat/*_desc-planes_FLAIR.png
    NIfTI/ArterialAtlas136.*         arterial territories, same space   -> derivatives/atlas/
    participants.tsv                 table, NIHSS, Rankin               -> participants.tsv

A lesion without a row is a patient whose table is missing. The whole set, ds004889 of OpenNeuro, is BIDS.
"""

import re
import shutil
from pathlib import Path

from willis.cohort.bids import LeftOut, StudyFiles, read_participants
from willis.cohort.intake import (
    ImportSummary,
    canonical_name,
    finish,
    new_cohort,
    place,
    same_bytes,
    with_progress,
    write_json,
)
from willis.errors import CohortError

_LESION = re.compile(r"bwsr(sub-[A-Za-z0-9]+)_lesion(\.nii|\.nii\.gz)")
_PLANES = re.compile(r"r(sub-[A-Za-z0-9]+)_lesion\.nii\.png")
_COLUMNS = {
    "sex": {"Description": "sex", "Levels": {"F": "female", "M": "male"}},
    "age": {"Description": "age at admission; 89+ for the oldest", "Units": "years"},
    "race": {"Description": "as registered"},
    "acuteischaemicstroke": {
        "Description": "acute ischemic stroke on this admission",
        "Levels": {"1.0": "yes"},
    },
    "priorstroke": {"Description": "a stroke before this one"},
    "bmi": {"Description": "body mass index", "Units": "kg/m^2"},
    "nihss": {"Description": "NIH Stroke Scale", "Units": "points"},
    "gs_rankin_6isdeath": {
        "Description": "modified Rankin scale of the registry, 6 is death; its time is not documented "
        "and read by others as discharge: not a 90-day outcome"
    },
}


def import_soop(source: Path, out: Path) -> ImportSummary:
    """Bring the derived SOOP set into a canonical cohort.

    Args:
        source: a clone of the public repository, or a folder of the same layout.
        out: the new cohort; it appears whole or not at all.

    Raises:
        CohortError: the layout is another one, `out` exists, or no study is usable.
        TableError: participants.tsv is not readable as a table of patients.
    """
    if not (source / "NIfTI").is_dir():
        hint = "; this looks like BIDS: `willis cohort import bids`" if any(source.glob("sub-*")) else ""
        raise CohortError(f"{source} has no folder NIfTI/, so it is not the derived SOOP set{hint}")
    path = source / "participants.tsv"
    table = read_participants(path if path.is_file() else None)
    studies, rejected = _studies(source)
    contradicting = {item.patient_id for item in table.left_out}
    twins = same_bytes(studies)
    studies = [s for s in studies if s.patient_id not in contradicting and s.study_id not in twins]
    with new_cohort(out) as cohort:
        for study in with_progress(studies, "importing patients"):
            for sequence, file in (("lesion", study.lesion), ("planes", study.planes)):
                if file is not None:
                    place(file, cohort / _name(study, sequence, file))
        _place_atlas(source, cohort)
        write_json(cohort / "participants.json", _COLUMNS)
        rejected += twins.values()
        return finish(cohort, "soop", "SOOP, derived set in standard space", studies, rejected, table)


def _studies(source: Path) -> tuple[list[StudyFiles], list[LeftOut]]:
    """Pair lesions with planes by the patient in their names."""
    lesions, rejected = _find(source, source / "NIfTI", _LESION)
    planes, more = _find(source, source / "PNG", _PLANES)
    names = sorted({*lesions, *planes})
    studies = [
        StudyFiles(name, name, lesion=lesions.get(name), planes=planes.get(name), in_standard_space=True)
        for name in names
    ]
    return studies, rejected + more


def _find(source: Path, folder: Path, pattern: re.Pattern[str]) -> tuple[dict[str, Path], list[LeftOut]]:
    found: dict[str, Path] = {}
    rejected: list[LeftOut] = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = pattern.fullmatch(path.name)
        if match is None:
            if "sub-" in path.name:
                reason = f"{folder.name}/{path.name!r} is not named like {pattern.pattern}"
                rejected.append(LeftOut("unknown", "unknown", reason))
            continue
        name = match[1]
        if not path.resolve().is_relative_to(source.resolve()) or not path.is_file():
            reason = f"{folder.name}/{path.name} is a link to nothing or to a place outside {source.name}/"
            rejected.append(LeftOut(name, name, reason))
        elif name in found:
            rejected.append(
                LeftOut(name, name, f"{path.name} and {found[name].name} are both there; keep one")
            )
        else:
            found[name] = path
    return found, rejected


def _name(study: StudyFiles, sequence: str, file: Path) -> Path:
    named = file.with_name(f"{study.patient_id}_space-MNI_{file.name}")
    return canonical_name(study, sequence, named)


def _place_atlas(source: Path, cohort: Path) -> None:
    for path in sorted((source / "NIfTI").glob("ArterialAtlas*")):
        place(path, cohort / "derivatives" / "atlas" / path.name)
    licence = source / "LICENSE"
    if licence.is_file():
        shutil.copyfile(licence, cohort / "LICENSE")
