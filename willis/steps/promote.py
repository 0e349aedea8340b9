"""The step `promote`: the bundle into the registry, and the alias if the gate holds. And the way back."""

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict

from willis import __version__
from willis.cohort.schema import SPLITS
from willis.errors import BundleError, InputError, StepError
from willis.evaluation.gate import GateCheck, GateLimits, check_against_champion, check_alone
from willis.evaluation.patients import Ingested
from willis.models.bundle import Bundle, SeenPatients, write_bundle
from willis.models.lineage import read_lineage, read_sequences
from willis.models.preprocessing import PREPROCESSING
from willis.monitoring.reference import sample_reference
from willis.outputs import whole_folder
from willis.params import PromoteParams
from willis.pseudonym import pseudonym
from willis.settings import Settings
from willis.stores.registry import Alias, Registry

if TYPE_CHECKING:
    import pandas as pd

    from willis.inference import Prediction, Predictor

PROMOTION = "promotion.json"
_KEY_CHECK = "willis: is this the same key?"


class Promotion(BaseModel):
    """What became of a candidate. A refusal is a result: the bundle is stored, the alias stays."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    alias: str
    moved: bool
    reason: str
    champion: str | None = None
    num_compared: int = 0
    num_left_out: int = 0
    checks: tuple[GateCheck, ...] = ()
    registry: str = ""


@dataclass(frozen=True)
class _Made:
    """Output folders of the steps before."""

    version: Path
    ingest: Path
    features: Path
    model: Path
    evaluation: Path


def promote(
    version: Path,
    ingest: Path,
    features: Path,
    model: Path,
    evaluation: Path,
    out: Path,
    params: PromoteParams,
    settings: Settings,
) -> Promotion:
    """Write the bundle to the registry and move the alias if the gate holds.

    The alias moves by compare and swap: of promoters that saw the same champion one wins, and the others'
    candidates stay in the registry, not promoted. A crash leaves the champion as it was.

    Args:
        version: output folder of `version`.
        ingest: output folder of `ingest`.
        features: output folder of `featurize`.
        model: output folder of `train`.
        evaluation: output folder of `evaluate`.
        out: folder to write: promotion.json and the bundle; appears whole or not at all.
        params: the gate.
        settings: registry, cache and pseudonym key.

    Raises:
        InputError: a step's output is missing or damaged.
        StoreError: the registry does not answer.
    """
    key = settings.pseudonym_key.get_secret_value()
    made = _Made(version, ingest, features, model, evaluation)
    with whole_folder(out, PROMOTION) as staged:
        candidate = _write_candidate(made, staged, params.num_reference, key)
        registry = Registry.open(settings)
        seen = registry.alias(params.alias)
        registry.publish(candidate)
        promotion = _decide(candidate, seen, registry, made, params, key)
        if promotion.moved and not registry.move(seen, candidate.version):
            now = registry.alias(params.alias).version
            reason = f"another promoter moved {params.alias} to {now} meanwhile; promote again to face it"
            promotion = promotion.model_copy(update={"moved": False, "reason": reason})
        promotion = promotion.model_copy(update={"registry": registry.store.url})
        (staged / PROMOTION).write_text(promotion.model_dump_json(indent=2) + "\n")
    return promotion


def rollback(to: str, params: PromoteParams, settings: Settings) -> Promotion:
    """Point the alias at a bundle that the registry holds, whatever the gate says.

    Args:
        to: a version, or `previous`: where the alias pointed before its last move.
        params: which alias.
        settings: where the registry is.

    Raises:
        InputError: there is no such bundle, or no previous one.
        BundleError: the bundle is damaged; the alias stays.
    """
    registry = Registry.open(settings)
    seen = registry.alias(params.alias)
    wanted = seen.previous if to == "previous" else to
    if wanted is None:
        raise InputError(
            f"{params.alias} has no previous version in {registry.store.url}; name one with --to"
        )
    bundle = registry.fetch(wanted)
    answer = Promotion(
        version=bundle.version,
        alias=params.alias,
        moved=False,
        reason=f"{bundle.version} is {params.alias} already",
        champion=seen.version,
        registry=registry.store.url,
    )
    if seen.version == bundle.version:
        return answer
    if not registry.move(seen, bundle.version):
        raise StepError(f"another promoter moved {params.alias} meanwhile; look at it, then roll back again")
    reason = f"rolled back from {seen.version or 'nothing'}; deploy again to serve it"
    return answer.model_copy(update={"moved": True, "reason": reason})


def _write_candidate(made: _Made, staged: Path, num_reference: int, key: str) -> Bundle:
    parts = staged / "parts"
    parts.mkdir()
    seen = _seen_patients(made.ingest, key)
    (parts / "patients.json").write_text(seen.model_dump_json(indent=1) + "\n")
    reference = _reference(made, num_reference, key)
    reference.to_parquet(parts / "reference.parquet", index=False)
    sources = {name: made.model / name for name in ("model.safetensors", "contract.json")}
    judged = ("calibration.json", "evaluation.json", "model_card.md")
    sources |= {name: made.evaluation / name for name in judged}
    sources[PREPROCESSING] = made.ingest / PREPROCESSING
    sources |= {name: parts / name for name in ("patients.json", "reference.parquet")}
    lineage = read_lineage(made.version, made.features, made.model, __version__)
    sequences, outcome = read_sequences(made.model), Ingested.read(made.ingest).outcome
    bundle = write_bundle(staged / "bundle", sources, lineage, sequences, datetime.now(UTC), outcome)
    shutil.rmtree(parts)
    return bundle


def _seen_patients(ingest: Path, key: str) -> SeenPatients:
    splits = _parquet(ingest / "splits.parquet")
    members = {
        split: tuple(sorted(pseudonym(p, key) for p in splits["patient_id"][splits["split"] == split]))
        for split in SPLITS
    }
    return SeenPatients(key_check=pseudonym(_KEY_CHECK, key), **members)


def _reference(made: _Made, num_rows: int, key: str) -> "pd.DataFrame":
    from willis.inference import Predictor

    predictor = Predictor.from_model_dir(made.model, made.evaluation / "calibration.json")
    predictions = _predict(predictor, made, "validation", None)
    table = _parquet(made.features / "training_table.parquet").drop_duplicates("patient_id", keep="last")
    rows = table.set_index("patient_id").loc[list(predictions)]
    for modality in ("image", "text", "table"):
        rows[f"has_{modality}"] = [modality in p.modalities_used for p in predictions.values()]
    return sample_reference(
        rows,
        [pseudonym(patient, key) for patient in predictions],
        np.array([p.probability for p in predictions.values()]),
        np.stack([p.embedding for p in predictions.values()]),
        num_rows,
    )


def _decide(
    candidate: Bundle, seen: Alias, registry: Registry, made: _Made, params: PromoteParams, key: str
) -> Promotion:
    """Judge the candidate; `moved` of the answer means that the alias should move."""
    answer = Promotion(
        version=candidate.version, alias=params.alias, moved=False, reason="", champion=seen.version
    )
    if seen.version == candidate.version:
        return answer.model_copy(update={"reason": f"{candidate.version} is {params.alias} already"})
    tested = _tested(made.evaluation, candidate, key)
    limits = GateLimits(**{name: getattr(params, name) for name in GateLimits.model_fields})
    checks = check_alone(tested["poor_outcome"], tested["p"], limits)
    if seen.version is None:
        return _verdict(answer, checks)
    try:
        champion = registry.fetch(seen.version)
    except BundleError as error:
        reason = f"champion {seen.version} cannot be read ({error}); move the alias with --to if it is to go"
        return answer.model_copy(update={"reason": reason, "checks": checks})
    kept, refusal = _fair(tested, candidate, champion)
    if refusal:
        return answer.model_copy(update={"reason": refusal, "checks": checks})
    try:
        p_champion = _champion_probabilities(champion, made, kept)
    except InputError as error:
        reason = f"champion {seen.version} cannot read these patients ({error}); compare them by hand"
        return answer.model_copy(update={"reason": reason, "checks": checks})
    checks += check_against_champion(kept["poor_outcome"], kept["p"], p_champion, limits)
    counts = {"num_compared": len(kept), "num_left_out": len(tested) - len(kept)}
    return _verdict(answer.model_copy(update=counts), checks)


def _verdict(answer: Promotion, checks: tuple[GateCheck, ...]) -> Promotion:
    moved = all(check.holds for check in checks)
    told = "; ".join(check.sentence() for check in checks if moved or not check.holds)
    start = "the gate holds" if moved else "the gate refuses"
    return answer.model_copy(update={"moved": moved, "checks": checks, "reason": f"{start}: {told}"})


def _tested(evaluation: Path, candidate: Bundle, key: str) -> "pd.DataFrame":
    """Return test patients with an outcome: patient_id, pseudonym, poor_outcome, p."""
    rows = _parquet(evaluation / "predictions.parquet")
    rows = rows[(rows["split"] == "test") & rows["poor_outcome"].notna()].reset_index(drop=True)
    rows["pseudonym"] = [pseudonym(patient, key) for patient in rows["patient_id"]]
    both = set(rows["pseudonym"]) & candidate.patients().learned_from()
    if both:
        raise StepError(
            f"{len(both)} test patients of {evaluation} were learned from, by {candidate.version}'s splits; "
            "run ingest, train and evaluate again on the same splits"
        )
    return rows


def _fair(tested: "pd.DataFrame", candidate: Bundle, champion: Bundle) -> "tuple[pd.DataFrame, str]":
    """Keep the patients whom the champion has not learned from either, or say why nobody can tell."""
    then, now = champion.patients(), candidate.patients()
    if then.key_check != now.key_check:
        reason = (
            f"champion {champion.version} was made under another WILLIS_PSEUDONYM_KEY, so nobody can tell "
            "whom both have learned from; use its key, or move the alias with --to"
        )
        return tested, reason
    if champion.manifest.sequences != candidate.manifest.sequences:
        reason = (
            f"champion {champion.version} reads {', '.join(champion.manifest.sequences)}, the candidate "
            f"{', '.join(candidate.manifest.sequences)}: they cannot read the same patients; move the alias "
            "with --to if that is meant"
        )
        return tested, reason
    other = champion.preprocessing().unlike(candidate.preprocessing())
    if other:
        reason = (
            f"champion {champion.version} was trained under another preprocessing ({', '.join(other)}), so "
            "its facts are not those of these patients; move the alias with --to if that is meant"
        )
        return tested, reason
    return tested[~tested["pseudonym"].isin(then.learned_from())].reset_index(drop=True), ""


def _champion_probabilities(
    champion: Bundle, made: _Made, kept: "pd.DataFrame"
) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    from willis.inference import Predictor

    predictor = Predictor.from_bundle(champion.folder)
    predictions = _predict(predictor, made, "test", set(kept["patient_id"]))
    return np.array([predictions[patient].probability for patient in kept["patient_id"]], dtype=np.float64)


def _predict(
    predictor: "Predictor", made: _Made, split: str, patients: set[str] | None
) -> "dict[str, Prediction]":
    from willis.inference import cases_from

    cases = [
        c for c in cases_from(made.ingest, made.features, split) if patients is None or c.case_id in patients
    ]
    predictions = predictor.predict(cases)
    return {prediction.case_id: prediction for prediction in predictions}


def _parquet(path: Path) -> "pd.DataFrame":
    import pandas as pd

    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); run the step that writes it again") from None
