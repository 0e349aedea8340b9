"""What the embedded reader should write: the fields that pictures can tell, in few words, as compact JSON.

Told the facts, it repeats them. With the pictures alone it leaves open what they do not tell reliably: how
many lesions there are, and whether FLAIR matches DWI where the signal is on the edge of the definition.
"""

from willis.imaging.lesion import FLAIR_VISIBLE_RATIO, Facts
from willis.reports.facts_writer import BAND_WORDS, place_of
from willis.reports.measured import measured_findings
from willis.reports.schema import Answer, Findings, Quality

MISMATCH_MARGIN = 0.05
"""A FLAIR ratio nearer than this to its limit is left open."""


def target_report(facts: Facts, acquired: frozenset[str], old_infarcts: Answer, told: bool) -> Findings:
    """Return the report that the reader should write.

    Args:
        facts: of the true infarct, or those told in the prompt.
        acquired: the sequences that can be seen.
        old_infarcts: whether a healed infarct can be seen.
        told: whether the prompt tells the facts.
    """
    fields = measured_findings(facts if told else _visible(facts, acquired))
    quality: dict[str, Quality] = {
        f"{name}_quality": "good" if name in acquired else "absent" for name in ("dwi", "adc", "flair")
    }
    words = {"findings": _describe(facts, told), "impression": _impress(fields, facts if told else None)}
    return Findings.model_validate(fields.model_dump() | quality | words | {"old_infarcts": old_infarcts})


def report_json(report: Findings) -> str:
    """Write the report as the reader writes it: compact, every field, in the order of the schema."""
    return report.model_dump_json()


def _visible(facts: Facts, acquired: frozenset[str]) -> Facts:
    """Keep what the pictures can tell without being measured."""
    if "dwi" not in acquired:
        return Facts()
    edge = facts.flair_ratio is None or abs(facts.flair_ratio - FLAIR_VISIBLE_RATIO) < MISMATCH_MARGIN
    unseen = {"flair": "dwi_flair_mismatch", "adc": "adc_lesion_mm2_s"}
    hidden = {field: None for sequence, field in unseen.items() if sequence not in acquired}
    if edge:
        hidden["dwi_flair_mismatch"] = None
    if facts.infarct_present:
        hidden["num_lesions"] = None
    return facts.model_copy(update=hidden)


def _describe(facts: Facts, told: bool) -> str:
    if not told or facts.adc_lesion_mm2_s is None:
        return ""
    return f"ADC {facts.adc_lesion_mm2_s * 1e6:.0f} x 10-6 mm2/s."


def _impress(fields: Findings, told: Facts | None) -> str:
    if fields.acute_infarct == "unknown":
        return "Acute ischaemia can be neither shown nor excluded."
    if fields.acute_infarct == "no":
        return "No acute infarct."
    size = BAND_WORDS.get(fields.volume_band, "acute").capitalize()
    volume = f", {told.volume_ml:.1f} ml" if told and told.volume_ml is not None else ""
    return f"{size} acute infarct in the {place_of(fields)}{volume}."
