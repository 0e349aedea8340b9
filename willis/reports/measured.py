"""The measured facts in the words of a report: what a writer renders, and what grounding compares with.

Only what was measured is known here. The ASPECTS cortex regions, for one, cannot be told from arterial loads,
so they stay unknown rather than guessed.
"""

from dataclasses import dataclass

from willis.imaging.lesion import Facts
from willis.reports.schema import Answer, Findings, Measured, Pattern, Region, Territory, volume_band

LOW_ADC_MM2_S = 700e-6
"""Below normal white matter (Helenius et al., AJNR 23:194, 2002); a whole lesion lies above its core."""
INVOLVED_ML = 0.1
"""A region counts as involved from this load on."""
TERRITORY_SHARE = 0.10
"""Of several territories, those with at least this share of the lesion are named."""
SCATTERED_FROM = 3


@dataclass(frozen=True)
class Part:
    """One part of an arterial map: how a report calls it, its artery, and the report region it stands for."""

    words: str
    artery: Territory
    region: Region | None = None


_DEFAULT: dict[str, Part] = {
    "aca": Part("medial frontal and parietal cortex", "aca"),
    "mca_frontal": Part("lateral frontal cortex", "mca"),
    "mca_parietal": Part("lateral parietal cortex", "mca"),
    "mca_temporal": Part("lateral temporal cortex", "mca"),
    "mca_occipital": Part("lateral occipital cortex", "mca"),
    "mca_insula": Part("insula", "mca", "insula"),
    "lenticulostriate": Part("basal ganglia", "mca"),
    "pca_temporal": Part("medial temporal lobe", "pca"),
    "pca_occipital": Part("medial occipital lobe", "pca"),
    "thalamus": Part("thalamus", "pca", "thalamus"),
    "cerebellum": Part("cerebellum", "vertebrobasilar", "cerebellum"),
    "brainstem": Part("brainstem", "vertebrobasilar", "brainstem"),
}
# The arterial atlas of Liu et al., Scientific Data 10:74 (2023), whose part names SOOP uses.
_LIU: dict[str, Part] = {
    "aca": _DEFAULT["aca"],
    "mls": Part("medial lenticulostriate territory", "mca"),
    "lls": Part("lateral lenticulostriate territory", "mca"),
    "mcaf": _DEFAULT["mca_frontal"],
    "mcap": _DEFAULT["mca_parietal"],
    "mcat": _DEFAULT["mca_temporal"],
    "mcao": _DEFAULT["mca_occipital"],
    "mcai": _DEFAULT["mca_insula"],
    "pcat": _DEFAULT["pca_temporal"],
    "pcao": _DEFAULT["pca_occipital"],
    "pctp": Part("thalamus", "pca", "thalamus"),
    "actp": Part("anterior choroidal territory", "pca"),
    "b": _DEFAULT["brainstem"],
    "sc": Part("superior cerebellum", "vertebrobasilar", "cerebellum"),
    "ic": Part("inferior cerebellum", "vertebrobasilar", "cerebellum"),
}


def part_of(region: str) -> Part | None:
    """Return the part that a load's region name stands for; None for a region of an unknown atlas."""
    for side in ("_left", "_right"):
        if region.endswith(side):
            return _DEFAULT.get(region.removesuffix(side))
    return _LIU.get(region[:-1])


def loads_by_part(facts: Facts) -> dict[Part, float]:
    """Sum the known loads over both sides, in ml, largest first; empty when none is known."""
    sums: dict[Part, float] = {}
    for load in facts.loads:
        part = part_of(load.region)
        if part is not None and load.volume_ml is not None:
            sums[part] = sums.get(part, 0.0) + load.volume_ml
    return dict(sorted(sums.items(), key=lambda item: (-item[1], item[0].words)))


def loads_by_region(facts: Facts) -> dict[Region, float]:
    """Return the load in ml of each report region that the cohort's atlas can tell."""
    sums: dict[Region, float] = {}
    for part, volume_ml in loads_by_part(facts).items():
        if part.region is not None:
            sums[part.region] = sums.get(part.region, 0.0) + volume_ml
    return sums


def measured_findings(facts: Facts) -> Findings:
    """State every field that the facts decide; all others stay unknown. The prose stays empty."""
    if facts.infarct_present is None:
        return Findings()
    if not facts.infarct_present:
        return Findings(
            acute_infarct="no", laterality="none", territories=(), regions=(), volume_band="none",
            num_lesions=0, pattern="none", midline_shift_mm=facts.midline_shift_mm,
        )  # fmt: skip
    return Findings(
        acute_infarct="yes",
        laterality=facts.laterality or "unknown",
        territories=_territories(facts),
        regions=tuple(r for r, ml in loads_by_region(facts).items() if ml >= INVOLVED_ML) or ("unknown",),
        volume_band=volume_band(facts.volume_ml),
        num_lesions=None if facts.num_lesions is None else min(facts.num_lesions, 99),
        pattern=_pattern(facts),
        low_adc=_below(facts.adc_lesion_mm2_s, LOW_ADC_MM2_S),
        dwi_flair_mismatch=_answer(facts.dwi_flair_mismatch),
        midline_shift_mm=facts.midline_shift_mm,
    )


def measured_numbers(facts: Facts) -> Measured:
    """Copy the numbers that stand beside the findings in a report."""
    return Measured(**{name: getattr(facts, name) for name in Measured.model_fields})


def _territories(facts: Facts) -> tuple[Territory, ...]:
    if facts.territory is None or facts.territory == "none":
        return ("unknown",)
    if facts.territory != "multiple":
        return (facts.territory,)
    sums: dict[Territory, float] = {}
    for part, volume_ml in loads_by_part(facts).items():
        sums[part.artery] = sums.get(part.artery, 0.0) + volume_ml
    total = sum(sums.values())
    named = tuple(artery for artery, ml in sums.items() if ml >= TERRITORY_SHARE * total and ml > 0)
    return named if len(named) > 1 else ("multiple",)


def _pattern(facts: Facts) -> Pattern:
    if facts.territory == "lacune":
        return "lacunar"
    if facts.num_lesions is None:
        return "unknown"
    return "scattered" if facts.num_lesions >= SCATTERED_FROM else "territorial"


def _answer(known: bool | None) -> Answer:
    return "unknown" if known is None else "yes" if known else "no"


def _below(value: float | None, limit: float) -> Answer:
    return _answer(None if value is None else value < limit)
