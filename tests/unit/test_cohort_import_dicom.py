"""DICOM intake: the right series, the right way round, and nothing of who the patient is."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from pydicom import Dataset

from tests.fixtures.dicom import SHAPE, patient, ramp, write_enhanced, write_series, write_study
from willis.cohort.bids import read_cohort
from willis.cohort.deidentify import (
    Pseudonyms,
    age_of,
    identifying_words,
    kept_of_sidecar,
    leaks,
    patient_pseudonym,
    scrub_volume,
)
from willis.cohort.dicom import _Slice, b_value, identify, import_dicom
from willis.errors import CohortError, SettingsError, TableError

KEY = "0123456789abcdef0123456789abcdef"
DWI = {
    "SeriesDescription": "ep2d_diff", "DiffusionBValue": 1000.0, "ScanningSequence": "EP",
    "ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "TRACEW"],
}  # fmt: skip
SECRETS = (
    "Quillfeather", "Thaddeus", "HOSP-0047113", "0047113", "19510317", "1951-03-17", "ACC99887766",
    "Wintergreen", "Ottoline", "Brambleby", "Elsewhere", "20210611", "2021-06-11", "4455667", "harbour",
)  # fmt: skip


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whole stroke study after intake."""
    folder = tmp_path_factory.mktemp("dicom")
    write_study(folder / "source", patient())
    import_dicom(folder / "source", folder / "out", KEY)
    return folder / "out"


def everything(folder: Path) -> str:
    """Every byte and every name below a folder, volumes unpacked."""
    parts = []
    for path in sorted(folder.rglob("*")):
        parts.append(str(path.relative_to(folder)))
        if path.is_file():
            content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            parts.append(content.decode("latin-1"))
    return "\n".join(parts)


def test_dwi_adc_and_flair_are_found_and_nothing_else(imported: Path) -> None:
    (study,) = read_cohort(imported).studies
    assert [name for name, _ in study.volumes()] == ["dwi", "adc", "flair"]
    values = {path.name.rsplit("_", 1)[1]: json.loads(path.read_text()) for path in study.sidecars}
    assert values["dwi.json"]["DiffusionBValue"] == 1000
    assert values["FLAIR.json"]["InversionTime"] == 2.5


def test_nothing_that_identifies_the_patient_is_in_any_file_or_name(imported: Path) -> None:
    text = everything(imported).lower()
    assert [secret for secret in SECRETS if secret.lower() in text] == []


def test_the_text_fields_of_the_volumes_are_empty(imported: Path) -> None:
    for _, path in read_cohort(imported).studies[0].volumes():
        header = nib.load(path).header
        texts = (header[name].item() for name in ("descrip", "aux_file", "intent_name", "db_name"))
        assert b"".join(texts) == b""
        assert not header.extensions


def test_the_volume_is_the_scanners_with_left_still_left(imported: Path) -> None:
    path = read_cohort(imported).studies[0].dwi
    image = nib.as_closest_canonical(nib.load(path))
    # DICOM counts towards the patient's left and back; RAS+ towards right and front.
    assert np.array_equal(np.asarray(image.dataobj), ramp()[::-1, ::-1, :])
    assert image.header.get_zooms() == pytest.approx((2.0, 2.5, 5.0))


def test_age_and_sex_are_kept_and_the_date_is_shifted(imported: Path) -> None:
    (row,) = read_cohort(imported).read_table().frame.to_dict("records")
    assert (row["age"], row["sex"], row["scanner"]) == ("70", "M", "SIEMENS Avanto 1.5T")
    days = (pd.Timestamp("2021-06-11T10:16:00Z") - pd.Timestamp(row["scan_time"])).days
    assert 30 <= days <= 5 * 366


def test_two_studies_of_a_patient_keep_their_distance_in_time(tmp_path: Path) -> None:
    names = Pseudonyms(KEY)
    assert names.shift("A") == names.shift("A") != names.shift("B")
    assert names.patient("A") == Pseudonyms(KEY).patient(" A ") != Pseudonyms(KEY[::-1]).patient("A")
    write_series(tmp_path / "s", patient(), 1, **DWI)
    write_series(tmp_path / "s", patient(AcquisitionDate="20210614", StudyDate="20210614"), 2, **DWI)
    import_dicom(tmp_path / "s", tmp_path / "out", KEY)
    cohort = read_cohort(tmp_path / "out")
    assert len(cohort.studies) == 2 and cohort.patient_ids == (patient_pseudonym("HOSP-0047113", KEY),)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ManufacturerModelName": "Avanto of QUILLFEATHER"}, "still holds something identifying"),
        ({"SequenceVariant": "SK", "ScanOptions": "THADDEUS"}, "still holds something identifying"),
        ({"BurnedInAnnotation": "YES"}, "BurnedInAnnotation is YES"),
        ({"private": [(0x0029, 0x10, "LO", "scan of Quillfeather")]}, r"private element \(0029,1010\)"),
        ({"private": [(0x0029, 0x10, "OB", b"\0\1HOSP-0047113\0")]}, r"private element \(0029,1010\)"),
        ({"private": [(0x0029, 0x10, "PN", "Someone^Else")]}, r"private element \(0029,1010\)"),
        ({"DiffusionBValue": 0.0, "SeriesDescription": "b0"}, "none of its 1 series is a DWI trace"),
    ],
)
def test_a_study_that_still_holds_a_name_or_has_a_surprise_is_refused_with_its_reason(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    good = patient(PatientID="GOOD-77812", PatientName="Fernsby^Ada")
    write_series(tmp_path / "s" / "good", good, 1, **DWI)
    write_series(tmp_path / "s" / "bad", patient(), 1, **DWI | changes)
    summary = import_dicom(tmp_path / "s", tmp_path / "out", KEY)
    (item,) = summary.rejected
    assert item.patient_id == patient_pseudonym("HOSP-0047113", KEY)
    assert re.search(reason, item.reason)
    assert read_cohort(tmp_path / "out").patient_ids == (patient_pseudonym("GOOD-77812", KEY),)
    text = everything(tmp_path / "out").lower()
    assert [secret for secret in SECRETS if secret.lower() in text and secret != "Elsewhere"] == []


def test_a_patient_without_an_id_is_listed_and_a_file_that_is_no_dicom_is_passed_over(tmp_path: Path) -> None:
    write_series(tmp_path / "s" / "a", patient(), 1, **DWI)
    write_series(tmp_path / "s" / "b", patient(PatientID=""), 1, **DWI)
    (tmp_path / "s" / "notes.txt").write_text("Quillfeather")
    summary = import_dicom(tmp_path / "s", tmp_path / "out", KEY)
    assert summary.num_patients == 1
    assert summary.rejected[0].reason == f"{SHAPE[2]} files have no PatientID; nobody can say whose they are"


def test_a_folder_without_dicom_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="no DICOM file"):
        import_dicom(tmp_path, tmp_path.parent / "out", KEY)


@pytest.mark.parametrize("key", ["willis-demo-only", "", "short"])
def test_the_published_key_and_short_ones_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(SettingsError, match="WILLIS_PSEUDONYM_KEY"):
        import_dicom(tmp_path, tmp_path / "out", key)


TRACE = {"SeriesDescription": "ep2d_diff b1000", "ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "TRACEW"]}
NAMED = {
    "FrameContentSequence": {"FrameComments": "Quillfeather, fell at the harbour", "StackID": "Thaddeus"},
    "RequestAttributesSequence": {"ReferringPhysicianName": "Wintergreen^Ottoline"},
}


def inverted(time_ms: float) -> dict[str, Any]:
    """What an enhanced inversion recovery says, and where."""
    modifier = {"InversionRecovery": "YES", "InversionTimes": time_ms}
    return {"SeriesDescription": "ir", "shared": {"MRModifierSequence": modifier}}


def test_enhanced_objects_of_one_volume_are_used_and_what_their_frames_name_is_removed(
    tmp_path: Path,
) -> None:
    who, folder, t1 = patient(), tmp_path / "s", {"SeriesDescription": "T1 FLAIR"}
    write_enhanced(folder, who, 1, (1000.0,), **TRACE, frame=NAMED)
    write_enhanced(folder, who, 2, (None,), **inverted(2500.0), frame=NAMED)
    write_enhanced(folder, who, 3, (None,), **inverted(860.0) | t1)
    write_series(folder, who, 4, SeriesDescription="FLAIR, two slices only", InversionTime=2500.0)
    for surplus in sorted((tmp_path / "s").glob("s04-*"))[2:]:
        surplus.unlink()
    import_dicom(tmp_path / "s", tmp_path / "out", KEY)
    (study,) = read_cohort(tmp_path / "out").studies
    assert [name for name, _ in study.volumes()] == ["dwi", "flair"]
    for _, path in study.volumes():
        image = nib.as_closest_canonical(nib.load(path))
        assert np.array_equal(np.asarray(image.dataobj), ramp()[::-1, ::-1, :])
        assert image.header.get_zooms() == pytest.approx((2.0, 2.5, 5.0))
    values = {path.name.rsplit("_", 1)[1]: json.loads(path.read_text()) for path in study.sidecars}
    assert values["dwi.json"]["DiffusionBValue"] == 1000
    assert values["FLAIR.json"]["InversionTime"] == 2.5
    text = everything(tmp_path / "out").lower()
    assert [secret for secret in SECRETS if secret.lower() in text] == []


@pytest.mark.parametrize(
    ("b_values", "changes", "reason"),
    [
        ((0.0, 1000.0), {}, "none of its 1 series is a DWI trace"),
        ((1000.0, 1000.0), {}, "none of its 1 series is a DWI trace"),
        (
            (1000.0,),
            {"ManufacturerModelName": "of GREENHALGH", "frame": {"PatientName": "Greenhalgh^Una"}},
            "still holds something identifying",
        ),
        (
            (1000.0,),
            {"frame": {"PatientName": "Greenhalgh^Una"}, "private": [(0x29, 0x10, "LO", "of Greenhalgh")]},
            r"private element \(0029,1010\)",
        ),
        (
            (1000.0,),
            {"private": [(0x29, 0x10, "LO", "scan of Quillfeather")]},
            r"private element \(0029,1010\)",
        ),
    ],
)
def test_an_enhanced_object_of_several_volumes_or_with_a_surprise_in_a_frame_is_refused(
    tmp_path: Path, b_values: tuple[float, ...], changes: dict[str, Any], reason: str
) -> None:
    write_series(
        tmp_path / "s" / "good", patient(PatientID="GOOD-77812", PatientName="Fernsby^Ada"), 1, **DWI
    )
    write_enhanced(tmp_path / "s" / "bad", patient(), 1, b_values, **TRACE | changes)
    summary = import_dicom(tmp_path / "s", tmp_path / "out", KEY)
    (item,) = summary.rejected
    assert item.patient_id == patient_pseudonym("HOSP-0047113", KEY)
    assert re.search(reason, item.reason)
    assert "greenhalgh" not in everything(tmp_path / "out").lower()


def test_a_folder_of_which_nothing_can_be_used_is_an_error_with_the_first_reason(tmp_path: Path) -> None:
    write_series(tmp_path / "s", patient(), 1, SeriesDescription="T2 TSE")
    with pytest.raises(CohortError, match="1 were rejected; the first reason is: none of its 1 series"):
        import_dicom(tmp_path / "s", tmp_path / "out", KEY)
    assert not (tmp_path / "out").exists()


def header(**what: Any) -> list[_Slice]:
    """A series of two slices with these attributes."""
    slices = []
    for position in (0.0, 5.0):
        dataset = Dataset()
        standard = {"Modality": "MR", "ImageType": ["ORIGINAL", "PRIMARY"], "EchoTime": 90.0}
        for name, value in (standard | {"ImagePositionPatient": [0.0, 0.0, position]} | what).items():
            setattr(dataset, name, value)
        slices.append(_Slice(Path("x"), dataset))
    return slices


@pytest.mark.parametrize(
    ("what", "sequence"),
    [
        ({"ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "ADC"]}, "adc"),
        ({"SeriesDescription": "Apparent Diffusion Coefficient (mm2/s)"}, "adc"),
        ({"SeriesDescription": "eADC", "ImageType": ["DERIVED", "EADC"]}, ""),
        ({"SeriesDescription": "dADC_b1000", "ImageType": ["DERIVED", "ADC"]}, "adc"),
        ({"SeriesDescription": "DWI b1000"}, "dwi"),
        ({"SequenceName": "*ep_b800t"}, "dwi"),
        ({"DiffusionBValue": 3000.0}, ""),
        ({"DiffusionBValue": 0.0}, ""),
        ({"SeriesDescription": "AX T2 FLAIR", "InversionTime": 2250.0}, "flair"),
        ({"SeriesDescription": "AX T1 FLAIR", "InversionTime": 860.0}, ""),
        ({"ScanningSequence": "IR", "InversionTime": 2600.0, "EchoTime": 125.0}, "flair"),
        ({"SeriesDescription": "AX T2 FLAIR", "ImageType": ["DERIVED", "SECONDARY", "MPR"]}, ""),
        ({"SeriesDescription": "T2 TSE"}, ""),
        ({"SeriesDescription": "AX FLAIR", "Modality": "CT"}, ""),
        ({"DiffusionBValue": 1000.0, "ImagePositionPatient": [0.0, 0.0, 0.0]}, ""),
    ],
)
def test_a_series_is_told_by_the_documented_rules(what: dict[str, Any], sequence: str) -> None:
    assert identify(header(**what))[0] == sequence


def test_of_a_series_with_several_b_values_the_slices_nearest_to_1000_are_taken() -> None:
    series = header(DiffusionBValue=0.0) + header(DiffusionBValue=900.0) + header(DiffusionBValue=2000.0)
    sequence, chosen = identify(series)
    assert sequence == "dwi" and [b_value(item.header) for item in chosen] == [900, 900]


@pytest.mark.parametrize(
    ("tag", "kind", "value", "expected"),
    [
        ((0x0019, 0x100C), "IS", "1000", 1000),
        ((0x2001, 0x1003), "FL", 800.0, 800),
        ((0x0043, 0x1039), "IS", ["1000001000", "8", "0", "0"], 1000),
        ((0x0043, 0x1039), "UN", b"1000\\8\\0\\0", 1000),
    ],
)
def test_vendors_keep_the_b_value_in_places_of_their_own(
    tag: tuple[int, int], kind: str, value: Any, expected: float
) -> None:
    dataset = Dataset()
    dataset.add_new(tag, kind, value)
    assert b_value(dataset) == expected


@pytest.mark.parametrize(
    ("what", "age"),
    [
        ({"PatientAge": "067Y"}, "67"),
        ({"PatientAge": "094Y"}, "89+"),
        ({"PatientBirthDate": "19510612", "StudyDate": "20210611"}, "69"),
        ({"PatientBirthDate": "19510611", "StudyDate": "20210611"}, "70"),
        ({}, None),
    ],
)
def test_age_is_years_and_the_oldest_are_one_group(what: dict[str, str], age: str | None) -> None:
    dataset = Dataset()
    for name, value in what.items():
        setattr(dataset, name, value)
    assert age_of(dataset) == age


def test_the_sidecar_keeps_numbers_and_codes_on_the_list_only() -> None:
    given = {
        "EchoTime": 0.09, "RepetitionTime": "six seconds", "PatientName": "x", "SeriesDescription": "of Q",
        "Manufacturer": "Siemens", "ScanOptions": "a remark, in words; about someone", "EchoNumber": None,
    }  # fmt: skip
    assert kept_of_sidecar(given) == {"EchoTime": 0.09, "Manufacturer": "Siemens"}


def test_the_proof_finds_a_word_in_a_header_a_value_and_a_name(tmp_path: Path) -> None:
    words = identifying_words([_dataset(PatientName="Quillfeather^Li", PatientID="A-77")])
    assert words == {"quillfeather", "li", "a-77"}
    image = nib.Nifti1Image(np.zeros((2, 2, 2), "int16"), np.eye(4))
    image.header["descrip"] = b"TE=90;Quillfeather"
    nib.save(image, tmp_path / "a.nii.gz")
    (tmp_path / "b.json").write_text('{"ScanOptions": ["Li"]}')
    (tmp_path / "c-A-77.json").write_text("{}")
    (tmp_path / "d.json").write_text('{"Linear": "lithium", "x": "A-771"}')
    assert leaks(tmp_path, words) == ["a.nii.gz", "b.json", "c-A-77.json"]
    scrub_volume(tmp_path / "a.nii.gz", tmp_path / "clean" / "a.nii.gz")
    assert leaks(tmp_path / "clean", words) == []


def _dataset(**what: Any) -> Dataset:
    dataset = Dataset()
    for name, value in what.items():
        setattr(dataset, name, value)
    return dataset


def test_the_hospitals_table_is_joined_under_the_pseudonym_with_its_times_shifted(tmp_path: Path) -> None:
    write_series(tmp_path / "s", patient(), 1, **DWI)
    table = tmp_path / "clinic.csv"
    table.write_text(
        "patient_id;nihss;mrs_90d;age;admission_time\n"
        "HOSP-0047113;11;4;93;2021-06-11T08:16:00\nNOBODY;1;0;50;2021-01-01\n"
    )
    import_dicom(tmp_path / "s", tmp_path / "out", KEY, table)
    (row,) = read_cohort(tmp_path / "out").read_table().frame.to_dict("records")
    assert (row["nihss"], row["mrs_90d"], row["age"], row["sex"]) == ("11", "4", "89+", "M")
    assert pd.Timestamp(row["scan_time"]) - pd.Timestamp(row["admission_time"]) == pd.Timedelta(hours=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("patient_id,remarks\n1,x\n", "could carry free text"),
        ("nihss\n1\n", "must have patient_id"),
        ("patient_id,nihss\nHOSP-1,eleven\n", "nihss in row 2 is no number"),
        ("patient_id,sex\nHOSP-1,male\n", "sex in row 2 is no F or M"),
        ("patient_id,admission_time\nHOSP-1,yesterday\n", "no ISO 8601 time"),
    ],
)
def test_a_hospitals_table_that_could_carry_free_text_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(TableError, match=message) as caught:
        import_dicom(tmp_path, tmp_path / "out", KEY, tmp_path / "t.csv")
    assert "HOSP-1" not in str(caught.value) and "eleven" not in str(caught.value)
