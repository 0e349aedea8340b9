"""The writer that renders measured facts: no model, no cost, and the control that a model must beat.

Sentences vary as radiologists' do, by a hash of the facts, so that a study always reads the same.
"""

import hashlib
import json
from collections.abc import Sequence as Choices

from willis.imaging.lesion import Facts
from willis.reports.measured import INVOLVED_ML, loads_by_part, measured_findings
from willis.reports.schema import MAX_IMPRESSION_WORDS, Findings, Quality
from willis.reports.writer import Study, WrittenReport

_TERRITORY_WORDS = {
    "aca": "anterior cerebral artery territory",
    "mca": "middle cerebral artery territory",
    "pca": "posterior cerebral artery territory",
    "vertebrobasilar": "vertebrobasilar territory",
    "lacune": "deep perforator territory",
}
_SIDE_WORDS = {"left": "left ", "right": "right ", "bilateral": "bilateral ", "midline": "midline "}
BAND_WORDS = {
    "under_1_ml": "punctate", "1_to_10_ml": "small", "10_to_70_ml": "moderate", "over_70_ml": "large",
}  # fmt: skip

_INFARCT = (
    "{Lesions} with restricted diffusion in the {place}, {volume} ml in total.",
    "Diffusion-weighted imaging shows {lesions} of acute ischaemia in the {place}, measuring {volume} ml.",
    "Acute diffusion restriction in the {place}: {lesions}, {volume} ml.",
)
_OUTLINED = (
    "The outlined acute lesion lies in the {place}: {lesions}, {volume} ml.",
    "{Lesions} of acute ischaemia outlined in the {place}, measuring {volume} ml.",
)
_NONE_OUTLINED = ("No acute lesion is outlined.",)
_NO_INFARCT = (
    "No focus of restricted diffusion.",
    "Diffusion-weighted imaging shows no acute ischaemia.",
    "No acute diffusion restriction is seen.",
)
_UNREADABLE = "The acquired sequences do not allow a statement on acute ischaemia."
_LOW_ADC = (
    "The apparent diffusion coefficient is reduced to {adc} x 10-6 mm2/s.",
    "Corresponding ADC of {adc} x 10-6 mm2/s, reduced.",
)
_HIGH_ADC = ("The apparent diffusion coefficient is {adc} x 10-6 mm2/s, not reduced.",)
_MISMATCH = (
    "No corresponding FLAIR signal change, a DWI-FLAIR mismatch.",
    "FLAIR is still inconspicuous in this area (DWI-FLAIR mismatch).",
)
_MATCH = (
    "Corresponding FLAIR hyperintensity; no DWI-FLAIR mismatch.",
    "The lesion is already visible on FLAIR.",
)
_PARTS = (
    "Most of the lesion lies in the {parts}.",
    "Mainly affected: {parts}.",
    "Involvement of the {parts}.",
)
_SHIFT = ("Midline shift of {shift} mm.", "The midline is displaced by {shift} mm.")
_NO_SHIFT = ("No midline shift.", "Midline structures are in place.")
_IMPRESSION = (
    "{Size} acute infarct in the {place} ({volume} ml{count}).",
    "Acute ischaemic stroke, {place}, {size} ({volume} ml{count}).",
    "{Size} acute ischaemia of {volume} ml in the {place}{count}.",
)
_NO_IMPRESSION = ("No acute infarct.", "No evidence of acute ischaemic stroke.", "No acute ischaemic lesion.")
_NO_STATEMENT = "Acute ischaemia can be neither shown nor excluded."

_TEMPLATES = (
    _INFARCT, _OUTLINED, _NONE_OUTLINED, _NO_INFARCT, _UNREADABLE, _LOW_ADC, _HIGH_ADC, _MISMATCH, _MATCH,
    _PARTS, _SHIFT, _NO_SHIFT, _IMPRESSION, _NO_IMPRESSION, _NO_STATEMENT, _TERRITORY_WORDS, BAND_WORDS,
)  # fmt: skip


class FactsWriter:
    """Writes what was measured, and nothing else."""

    name = "facts"
    model = "measured-facts"
    temperature = 0.0

    def __init__(self, max_words: int = MAX_IMPRESSION_WORDS) -> None:
        self.max_words = max_words
        wording = json.dumps([_TEMPLATES, max_words, Findings.model_json_schema()])
        self.prompt_hash = hashlib.sha256(wording.encode()).hexdigest()[:16]

    async def write(self, study: Study, *, attempt: int) -> WrittenReport:
        """Render the facts; every attempt gives the same report."""
        findings = self.findings(study.facts, study.acquired())
        return WrittenReport(findings, self.model, self.prompt_hash, self.temperature, 0, attempt)

    async def close(self) -> None:
        """Nothing is held."""

    def findings(self, facts: Facts, acquired: frozenset[str]) -> Findings:
        """State the measured fields and put them into words.

        Args:
            facts: what was measured; unknown facts stay unknown fields and get no sentence.
            acquired: sequences of the study; a facts writer cannot judge their quality, only their absence.
        """
        fields = measured_findings(facts)
        quality: dict[str, Quality] = {
            f"{name}_quality": "unknown" if name in acquired else "absent" for name in ("dwi", "adc", "flair")
        }
        words = {
            "findings": _describe(facts, fields, "dwi" in acquired),
            "impression": self._impress(facts, fields),
        }
        return Findings.model_validate(fields.model_dump() | quality | words)

    def _impress(self, facts: Facts, fields: Findings) -> str:
        if fields.acute_infarct != "yes":
            return _NO_STATEMENT if fields.acute_infarct == "unknown" else _vary(_NO_IMPRESSION, facts)
        size = BAND_WORDS.get(fields.volume_band, "acute")
        count = f", {fields.num_lesions} lesions" if (fields.num_lesions or 1) > 1 else ""
        first = _vary(_IMPRESSION, facts).format(
            size=size,
            Size=size.capitalize(),
            place=place_of(fields),
            volume=_ml(facts.volume_ml),
            count=count,
        )
        rest = "DWI-FLAIR mismatch." if fields.dwi_flair_mismatch == "yes" else ""
        sentences = [first, rest] if len(f"{first} {rest}".split()) <= self.max_words else [first]
        return " ".join(" ".join(sentences).split()[: self.max_words])


def _describe(facts: Facts, fields: Findings, with_dwi: bool) -> str:
    if fields.acute_infarct == "unknown":
        return _UNREADABLE
    if fields.acute_infarct == "yes":
        sentences = [_infarct(facts, fields, _INFARCT if with_dwi else _OUTLINED)]
    else:
        sentences = [_vary(_NO_INFARCT if with_dwi else _NONE_OUTLINED, facts)]
    if facts.adc_lesion_mm2_s is not None:
        forms = _LOW_ADC if fields.low_adc == "yes" else _HIGH_ADC
        sentences.append(_vary(forms, facts).format(adc=f"{facts.adc_lesion_mm2_s * 1e6:.0f}"))
    if fields.dwi_flair_mismatch != "unknown":
        sentences.append(_vary(_MISMATCH if fields.dwi_flair_mismatch == "yes" else _MATCH, facts))
    if parts := [part.words for part, ml in loads_by_part(facts).items() if ml >= INVOLVED_ML][:3]:
        sentences.append(_vary(_PARTS, facts).format(parts=_enumerate(parts)))
    if facts.midline_shift_mm is not None:
        shifted = facts.midline_shift_mm >= 1
        sentences.append(
            _vary(_SHIFT if shifted else _NO_SHIFT, facts).format(shift=f"{facts.midline_shift_mm:.0f}")
        )
    return " ".join(sentences)


def _infarct(facts: Facts, fields: Findings, forms: Choices[str]) -> str:
    number = fields.num_lesions
    lesions = "one focus" if number == 1 else f"{number} foci" if number else "foci"
    return _vary(forms, facts).format(
        lesions=lesions, Lesions=lesions.capitalize(), place=place_of(fields), volume=_ml(facts.volume_ml)
    )


def place_of(fields: Findings) -> str:
    """Name side and territories of the acute infarct in words."""
    side = _SIDE_WORDS.get(fields.laterality, "")
    named = [_TERRITORY_WORDS[t] for t in fields.territories if t in _TERRITORY_WORDS]
    if named:
        return side + _enumerate(named)
    return f"{side}brain, in several territories" if "multiple" in fields.territories else f"{side}brain"


def _enumerate(words: Choices[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _ml(volume_ml: float | None) -> str:
    return "an unknown number of" if volume_ml is None else f"{volume_ml:.1f}"


def _vary(forms: Choices[str], facts: Facts) -> str:
    digest = hashlib.sha256(f"{forms[0]}{facts.model_dump_json()}".encode()).digest()
    return forms[digest[0] % len(forms)]
