"""Does a report say what was measured? Each stated fact is held against the measured one.

Unknown is never a contradiction, but leaving out what was measured costs score: the score is the share of the
checkable facts that the report states rightly. A report about a small or absent infarct is checked like any
other; no word in it is a reason to throw it away.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from willis.imaging.lesion import Facts
from willis.reports.measured import loads_by_part, loads_by_region, measured_findings
from willis.reports.schema import ASPECTS_REGIONS, Findings, volume_band

Verdict = Literal["right", "contradiction", "hallucination", "omission", "self-contradiction"]
WRONG: tuple[Verdict, ...] = ("contradiction", "hallucination", "self-contradiction")
"""Verdicts that contradict: the measurement, or the report itself."""

CLEARLY_INVOLVED_ML = 0.5
"""A measured load from which leaving the region out is an omission."""
SHIFT_TOLERANCE_MM = 2.0
VOLUME_TOLERANCE = 0.25
"""A volume in the prose may differ by this share, or else must lie in the measured band."""


@dataclass(frozen=True)
class Check:
    """One comparison and how it ended.

    Attributes:
        verdict: how it ended.
        field: of `Findings`.
        stated: what the report states there, in words; empty where it states nothing.
        measured: what was measured, in words; empty where the report clashes with itself.
        message: the comparison as one sentence.
    """

    verdict: Verdict
    field: str
    stated: str
    measured: str
    message: str


@dataclass(frozen=True)
class Grounding:
    """How a report stands against the measurements.

    Attributes:
        score: right / all checks, 0 to 1; None when nothing could be checked.
        contradictions: what is wrong, in words: stated otherwise, stated but absent, or against itself.
        num_checks: facts that were both checkable and due.
        num_hallucinations: stated but absent.
        num_omissions: present but unstated.
        num_self_contradictions: statements that exclude each other.
    """

    score: float | None
    contradictions: tuple[str, ...]
    num_checks: int
    num_hallucinations: int
    num_omissions: int
    num_self_contradictions: int


def ground(findings: Findings, facts: Facts, acquired: frozenset[str] | None = None) -> Grounding:
    """Compare a report with what was measured.

    Args:
        findings: what the report states.
        facts: what was measured; fields that are None check nothing.
        acquired: sequences that could have been seen; None when not known.
    """
    return grounding_of(checks(findings, facts, acquired))


def checks(findings: Findings, facts: Facts, acquired: frozenset[str] | None = None) -> tuple[Check, ...]:
    """Make every comparison that `ground` counts; the arguments are the same."""
    return (
        *_check_fields(findings, measured_findings(facts)),
        *_check_territories(findings, facts),
        *_check_regions(findings, facts),
        *_check_aspects(findings, facts),
        *_check_volumes_in_words(findings, facts),
        *_check_sequences(findings, acquired),
        *_check_itself(findings),
    )


def grounding_of(made: tuple[Check, ...]) -> Grounding:
    """Count comparisons."""
    count = {verdict: sum(c.verdict == verdict for c in made) for verdict in get_args(Verdict)}
    return Grounding(
        score=count["right"] / len(made) if made else None,
        contradictions=tuple(c.message for c in made if c.verdict in WRONG),
        num_checks=len(made),
        num_hallucinations=count["hallucination"],
        num_omissions=count["omission"],
        num_self_contradictions=count["self-contradiction"],
    )


def _check_fields(stated: Findings, measured: Findings) -> Iterator[Check]:
    equal: Callable[[object, object], bool] = lambda a, b: a == b  # noqa: E731
    near: Callable[[float, float], bool] = lambda a, b: abs(a - b) <= SHIFT_TOLERANCE_MM  # noqa: E731
    compared = {
        "acute_infarct": equal, "laterality": equal, "volume_band": equal, "num_lesions": equal,
        "low_adc": equal, "dwi_flair_mismatch": equal, "midline_shift_mm": near,
    }  # fmt: skip
    for name, same in compared.items():
        said, truth = getattr(stated, name), getattr(measured, name)
        if truth in (None, "unknown"):
            continue
        if said in (None, "unknown"):
            if truth != "none":
                yield Check("omission", name, "", str(truth), f"{name} is not stated; measured {truth}")
            continue
        wrong: Verdict = "hallucination" if truth in ("no", "none", 0) else "contradiction"
        message = f"{name} is stated {said}; measured {truth}"
        yield Check("right" if same(said, truth) else wrong, name, str(said), str(truth), message)


def _check_territories(stated: Findings, facts: Facts) -> Iterator[Check]:
    measured, said = measured_findings(facts).territories, stated.territories
    if measured == ("unknown",):
        return
    if said == ("unknown",):
        if measured:
            message = f"territories are not stated; measured {_list(measured)}"
            yield Check("omission", "territories", "", _list(measured), message)
        return
    verdict: Verdict
    if not measured:
        verdict = "hallucination" if said else "right"
    elif len(measured) > 1 or measured == ("multiple",):
        overlap = measured == ("multiple",) or not {*said}.isdisjoint(measured)
        verdict = _right_if("multiple" in said or (len(said) > 1 and overlap))
    else:
        verdict = _right_if(measured[0] in said and len(said) <= 2)
    message = f"territories are stated {_list(said)}; measured {_list(measured)}"
    yield Check(verdict, "territories", _list(said), _list(measured), message)


def _check_regions(stated: Findings, facts: Facts) -> Iterator[Check]:
    """Judge only regions that the cohort's atlas can tell; the ASPECTS cortex regions are not among them."""
    loads = loads_by_region(facts)
    if stated.regions == ("unknown",):
        loads = {r: ml for r, ml in loads.items() if ml >= CLEARLY_INVOLVED_ML}
    for region, volume_ml in loads.items():
        measured = f"{region} {volume_ml:.1f} ml"
        if region in stated.regions:
            nothing = volume_ml <= 0
            truth = "no lesion was measured there" if nothing else f"measured {volume_ml:.1f} ml"
            verdict: Verdict = "hallucination" if nothing else "right"
            yield Check(verdict, "regions", region, measured, f"region {region} is stated; {truth}")
        elif volume_ml >= CLEARLY_INVOLVED_ML:
            message = f"region {region} is not stated; measured {volume_ml:.1f} ml"
            yield Check("omission", "regions", "", measured, message)


def _check_aspects(stated: Findings, facts: Facts) -> Iterator[Check]:
    score = stated.dwi_aspects
    if score is None:
        return
    affected = [region for region in stated.regions if region in ASPECTS_REGIONS]
    if stated.regions != ("unknown",) and score != 10 - len(affected):
        message = f"dwi_aspects is {score}; {len(affected)} affected regions make {10 - len(affected)}"
        yield _clash("dwi_aspects", score, message)
    mca_ml = [ml for part, ml in loads_by_part(facts).items() if part.artery == "mca"]
    if mca_ml:
        measured = f"{sum(mca_ml):.1f} ml in the MCA territory"
        wrong = (score < 10 and sum(mca_ml) <= 0) or (
            score == 10 and loads_by_region(facts).get("insula", 0) >= CLEARLY_INVOLVED_ML
        )
        message = f"dwi_aspects is stated {score}; measured {measured}"
        yield Check(_right_if(not wrong), "dwi_aspects", str(score), measured, message)


def _check_volumes_in_words(stated: Findings, facts: Facts) -> Iterator[Check]:
    if facts.volume_ml is None:
        return
    band, measured = volume_band(facts.volume_ml), f"{facts.volume_ml:.1f} ml"
    for number in re.findall(r"(\d+(?:\.\d+)?) ?m[lL]\b", stated.impression):
        near = abs(float(number) - facts.volume_ml) <= VOLUME_TOLERANCE * facts.volume_ml + 0.05
        verdict = _right_if(near or volume_band(float(number)) == band)
        message = f"the impression says {number} ml; measured {measured}"
        yield Check(verdict, "impression", f"{number} ml", measured, message)


def _check_sequences(stated: Findings, acquired: frozenset[str] | None) -> Iterator[Check]:
    for sequence in ("dwi", "adc", "flair"):
        field = f"{sequence}_quality"
        quality = getattr(stated, field)
        if acquired is None or quality == "unknown":
            continue
        if sequence in acquired:
            verdict = _right_if(quality != "absent")
            message = f"{field} is stated {quality}; the sequence was acquired"
            yield Check(verdict, field, quality, "acquired", message)
        else:
            seen: Verdict = "right" if quality == "absent" else "hallucination"
            message = f"{field} is stated {quality}; there is no {sequence}"
            yield Check(seen, field, quality, "not acquired", message)


def _check_itself(stated: Findings) -> Iterator[Check]:
    infarct = {
        "laterality": stated.laterality not in ("none", "unknown"),
        "territories": stated.territories not in ((), ("unknown",)),
        "volume_band": stated.volume_band not in ("none", "unknown"),
        "num_lesions": bool(stated.num_lesions),
        "regions": stated.regions not in ((), ("unknown",)),
    }
    none = {
        "laterality": stated.laterality == "none",
        "volume_band": stated.volume_band == "none",
        "num_lesions": stated.num_lesions == 0,
    }
    clashing = {"no": infarct, "yes": none, "unknown": {}}[stated.acute_infarct]
    for name, clashes in clashing.items():
        if clashes:
            value = getattr(stated, name)
            yield _clash(name, value, f"acute_infarct is {stated.acute_infarct}, but {name} is {value}")
    yield from _check_words(stated)


def _check_words(stated: Findings) -> Iterator[Check]:
    """Hold the sentences about the acute lesion against the fields."""
    for place in ("findings", "impression"):
        about, denied = _about_the_infarct(getattr(stated, place))
        sides = {side for side in ("left", "right") if re.search(rf"\b{side}\b", about, re.IGNORECASE)}
        if len(sides) == 1 and stated.laterality in {"left", "right"} - sides:
            side = sides.pop()
            yield _clash(place, side, f"the {place} say {side}; laterality is {stated.laterality}")
        if denied and not about and stated.acute_infarct == "yes":
            message = f"the {place} deny an acute infarct; acute_infarct is yes"
            yield _clash(place, "no acute infarct", message)
        if about and stated.acute_infarct == "no":
            message = f"the {place} describe an acute infarct; acute_infarct is no"
            yield _clash(place, "an acute infarct", message)


_NEGATED = re.compile(r"\b(no|without|not|nor|absence|negative|excluded)\b", re.IGNORECASE)
_ACUTE = re.compile(r"\b(acute|restricted diffusion|diffusion restriction)\b", re.IGNORECASE)
_OTHER = re.compile(r"\b(old|chronic|remote|previous)\b", re.IGNORECASE)


def _about_the_infarct(text: str) -> tuple[str, bool]:
    """Return the sentences that affirm an acute lesion, and whether a sentence denies one."""
    affirmed, denied = [], False
    for sentence in re.split(r"(?<=[.;])\s+", text):
        acute = _ACUTE.search(sentence)
        if not acute or _OTHER.search(sentence):
            continue
        if _NEGATED.search(sentence[: acute.start()]):
            denied = True
        else:
            affirmed.append(sentence)
    return " ".join(affirmed), denied


def _right_if(right: bool) -> Verdict:
    return "right" if right else "contradiction"


def _clash(field: str, stated: object, message: str) -> Check:
    words = _list(stated) if isinstance(stated, tuple) else str(stated)
    return Check("self-contradiction", field, words, "", message)


def _list(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "none"
