"""What a report may and may not say."""

import json

import pytest

from willis.errors import ReportError
from willis.reports.schema import Findings, parse_findings, report_columns, volume_band


def _answer(**fields: object) -> str:
    return json.dumps({"acute_infarct": "yes", "laterality": "left"} | fields)


def test_unknown_is_a_value_of_every_field() -> None:
    findings = parse_findings("{}")
    unknown = {name: value for name, value in findings if value not in ("unknown", None, ("unknown",), "")}
    assert unknown == {}


@pytest.mark.parametrize(
    "words",
    [
        "NIHSS 14 expected.",
        "Consistent with an NIH Stroke Scale of 8.",
        "mRS 4 is likely.",
        "A modified Rankin of 3.",
        "The prognosis is poor.",
        "Poor functional outcome.",
        "High mortality.",
        "He will recover.",
        "Should receive thrombolysis.",
        "Candidate for thrombectomy.",
        "Start aspirin.",
        "Treatment with alteplase.",
    ],
)
def test_scores_prognosis_and_treatment_are_refused(words: str) -> None:
    with pytest.raises(ReportError, match="must not speak of"):
        parse_findings(_answer(impression=words))
    with pytest.raises(ReportError, match="must not speak of"):
        parse_findings(_answer(findings=words))


@pytest.mark.parametrize(
    "words",
    [
        "Normal study.",
        "Fluid-attenuated inversion recovery shows no lesion.",
        "No acute infarct.",
        "",
    ],
)
def test_words_of_a_normal_study_are_not_refused(words: str) -> None:
    assert (
        parse_findings(_answer(acute_infarct="no", laterality="none", impression=words)).impression == words
    )


def test_an_impression_of_more_than_60_words_is_refused_with_the_count() -> None:
    with pytest.raises(ReportError, match="61 words; at most 60"):
        parse_findings(_answer(impression="word " * 61))


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        ('{"laterality": "links"}', "laterality is 'links'"),
        ('{"dwi_aspects": 11}', "dwi_aspects is 11; "),
        ('{"nihss": 4}', "nihss"),
        ("The left hemisphere", "not JSON|Invalid JSON"),
        ('{"laterality": "left"', "Invalid JSON"),
        ('{"territories": ["mca", "unknown"]}', "mixes 'unknown'"),
    ],
)
def test_a_broken_answer_is_refused_and_names_the_place(answer: str, named: str) -> None:
    with pytest.raises(ReportError, match=named):
        parse_findings(answer)


def test_a_region_that_is_named_twice_counts_once() -> None:
    assert parse_findings('{"regions": ["insula", "thalamus", "insula"]}').regions == ("insula", "thalamus")


def test_the_schema_for_guided_decoding_forbids_fields_of_its_own_invention() -> None:
    schema = Findings.model_json_schema()
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == set(Findings.model_fields)
    assert not {"nihss", "mrs", "volume_ml"} & set(schema["properties"])


@pytest.mark.parametrize(
    ("volume_ml", "band"),
    [
        (None, "unknown"), (0.0, "none"), (0.99, "under_1_ml"), (1.0, "1_to_10_ml"), (69.9, "10_to_70_ml"),
        (70, "over_70_ml"),
    ],
)  # fmt: skip
def test_volume_bands_start_at_their_lower_edge(volume_ml: float | None, band: str) -> None:
    assert volume_band(volume_ml) == band


def test_columns_for_drift_hold_fields_and_no_prose() -> None:
    columns = report_columns(
        Findings(territories=("pca", "mca"), regions=(), num_lesions=2, impression="Small.")
    )
    assert columns["r_territories"] == "mca+pca"
    assert columns["r_regions"] == "none"
    assert columns["r_num_lesions"] == 2.0
    assert not {"r_impression", "r_findings"} & set(columns)
