"""Each stated fact against the measured one."""

import pytest

from tests.small_ingest import facts_of
from willis.imaging.lesion import Facts, Load
from willis.reports.facts_writer import FactsWriter
from willis.reports.grounding import ground
from willis.reports.schema import Findings

LEFT_MCA = Facts(
    infarct_present=True, volume_ml=12.0, num_lesions=2, laterality="left", territory="mca",
    adc_lesion_mm2_s=500e-6, dwi_flair_mismatch=True,
    loads=(
        Load(region="mca_insula_left", volume_ml=4.0), Load(region="mca_frontal_left", volume_ml=8.0),
        Load(region="thalamus_left", volume_ml=0.0), Load(region="cerebellum_left", volume_ml=0.0),
    ),
)  # fmt: skip
RIGHT = Findings(
    acute_infarct="yes", laterality="left", territories=("mca",), regions=("insula", "m1"),
    volume_band="10_to_70_ml", num_lesions=2, low_adc="yes", dwi_flair_mismatch="yes", dwi_aspects=8,
    findings="Restricted diffusion in the left insula. Old infarct in the right cerebellum.",
    impression="Acute infarct of 12 ml in the left MCA territory.",
)  # fmt: skip
NOTHING = Facts(
    infarct_present=False, volume_ml=0.0, num_lesions=0, laterality="none", territory="none",
    loads=(Load(region="thalamus_left", volume_ml=0.0),),
)  # fmt: skip


def _but(**changes: object) -> Findings:
    return Findings.model_validate(RIGHT.model_dump() | changes)


def test_a_right_report_scores_one_and_contradicts_nothing() -> None:
    grounding = ground(RIGHT, LEFT_MCA, frozenset({"dwi", "adc", "flair"}))
    assert grounding.contradictions == ()
    assert grounding.score == 1.0
    assert grounding.num_checks >= 9


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"laterality": "right", "impression": "", "findings": ""},
            "laterality is stated right; measured left",
        ),
        ({"territories": ("pca",)}, "territories are stated pca; measured mca"),
        ({"volume_band": "over_70_ml"}, "volume_band is stated over_70_ml; measured 10_to_70_ml"),
        ({"num_lesions": 1}, "num_lesions is stated 1; measured 2"),
        ({"low_adc": "no"}, "low_adc is stated no; measured yes"),
        ({"dwi_flair_mismatch": "no"}, "dwi_flair_mismatch is stated no; measured yes"),
        (
            {"regions": ("insula", "m1", "thalamus")},
            "region thalamus is stated; no lesion was measured there",
        ),
        ({"dwi_aspects": 10, "regions": ("unknown",)}, "dwi_aspects is stated 10; measured 12.0 ml"),
        (
            {"impression": "Acute infarct of 90 ml in the left MCA territory."},
            "impression says 90 ml; measured 12.0",
        ),
        ({"dwi_quality": "good"}, "dwi_quality is stated good; there is no dwi"),
    ],
)
def test_a_stated_fact_that_differs_from_the_measured_one_is_named(
    change: dict[str, object], said: str
) -> None:
    grounding = ground(_but(**change), LEFT_MCA, frozenset({"flair"}))
    assert any(said in message for message in grounding.contradictions), grounding.contradictions
    assert grounding.score is not None and grounding.score < 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"acute_infarct": "no"}, "acute_infarct is no, but laterality is left"),
        ({"num_lesions": 0}, "acute_infarct is yes, but num_lesions is 0"),
        ({"dwi_aspects": 4}, "dwi_aspects is 4; 2 affected regions make 8"),
        (
            {"impression": "Acute infarct in the right MCA territory."},
            "the impression say right; laterality is left",
        ),
        ({"impression": "No acute infarct."}, "the impression deny an acute infarct"),
    ],
)
def test_a_report_against_itself_is_a_self_contradiction(change: dict[str, object], said: str) -> None:
    grounding = ground(_but(**change), Facts())
    assert grounding.num_self_contradictions >= 1
    assert any(said in message for message in grounding.contradictions), grounding.contradictions


def test_sides_of_old_lesions_and_of_denied_ones_are_not_held_against_the_report() -> None:
    words = (
        "Restricted diffusion on the left. No acute lesion on the right. Chronic infarct, right occipital."
    )
    assert ground(_but(findings=words), LEFT_MCA).num_self_contradictions == 0


def test_a_lesion_in_a_study_without_one_is_hallucinated() -> None:
    grounding = ground(RIGHT, NOTHING)
    assert grounding.num_hallucinations >= 5
    assert grounding.num_omissions == 0


def test_an_empty_report_omits_everything_and_contradicts_nothing() -> None:
    grounding = ground(Findings(), LEFT_MCA)
    assert grounding.contradictions == ()
    assert grounding.score == 0.0
    assert grounding.num_omissions == grounding.num_checks


def test_nothing_measured_means_nothing_checked() -> None:
    assert ground(Findings(laterality="left"), Facts()).score is None


def test_a_normal_study_described_as_normal_scores_one() -> None:
    normal = Findings(
        acute_infarct="no", laterality="none", territories=(), regions=(), volume_band="none", num_lesions=0,
        impression="No acute infarct. Normal study.",
    )  # fmt: skip
    assert ground(normal, NOTHING).score == 1.0


def test_the_facts_writer_contradicts_no_measurement() -> None:
    writer = FactsWriter()
    for number in range(40):
        findings = writer.findings(facts_of(number), frozenset({"dwi", "adc", "flair"}))
        grounding = ground(findings, facts_of(number), frozenset({"dwi", "adc", "flair"}))
        assert grounding.contradictions == ()
        assert grounding.score in (1.0, None)


def test_reports_of_another_patient_are_caught_whenever_side_or_territory_differ() -> None:
    writer, sequences = FactsWriter(), frozenset({"dwi", "adc", "flair"})
    tried = 0
    for number in range(40):
        own, other = facts_of(number), facts_of((number + 1) % 40)
        known = own.infarct_present is not None and other.infarct_present is not None
        if known and (own.laterality, own.territory) != (other.laterality, other.territory):
            tried += 1
            assert ground(writer.findings(other, sequences), own, sequences).contradictions
    assert tried > 20


def test_the_facts_writer_varies_its_words_keeps_its_length_and_repeats_itself() -> None:
    writer = FactsWriter(max_words=12)
    reports = [writer.findings(facts_of(number), frozenset({"dwi"})) for number in range(60)]
    assert reports == [FactsWriter(max_words=12).findings(facts_of(n), frozenset({"dwi"})) for n in range(60)]
    openings = {report.findings.split()[0] for report in reports if report.acute_infarct == "yes"}
    assert len(openings) >= 3
    assert max(len(report.impression.split()) for report in reports) <= 12


def test_without_dwi_the_facts_writer_does_not_claim_to_have_seen_it() -> None:
    report = FactsWriter().findings(LEFT_MCA, frozenset({"flair"}))
    assert report.dwi_quality == "absent"
    assert "iffusion-weighted" not in report.findings


def test_regions_of_the_liu_atlas_are_understood() -> None:
    facts = Facts(
        infarct_present=True, volume_ml=9.0, num_lesions=1, laterality="bilateral", territory="multiple",
        loads=(
            Load(region="mcail", volume_ml=4.0), Load(region="pctpr", volume_ml=4.0),
            Load(region="scl", volume_ml=0.2),
        ),
    )  # fmt: skip
    report = FactsWriter().findings(facts, frozenset())
    assert set(report.territories) == {"mca", "pca"}
    assert set(report.regions) == {"insula", "thalamus", "cerebellum"}
