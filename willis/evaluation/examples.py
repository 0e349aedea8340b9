"""Three test patients to look at: a clear poor outcome, a clear good one, and the model's worst error."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from willis.evaluation.metrics import Numbers
from willis.evaluation.plots import SaliencyView
from willis.imaging.grid import Grid, resample
from willis.imaging.shards import decode
from willis.imaging.territory import template_path
from willis.inference import Case, Predictor

BACKGROUNDS = ("dwi", "flair", "adc", "lesion")
LOW_ADC = 0.62
BRIGHT_DWI = 2.0
MIN_VOXELS = 6


def choose_examples(cases: Sequence[Case], outcome: Numbers, probability: Numbers) -> list[tuple[int, str]]:
    """Choose up to three different patients who have a volume.

    Returns:
        Index of the case and what it is an example of.
    """
    usable = np.array([case.volume is not None and bool(case.sequence_present.any()) for case in cases])
    error = np.abs(probability - outcome)
    rules = (
        ("clearest poor outcome", np.where(usable & (outcome == 1), probability, -1)),
        ("clearest good outcome", np.where(usable & (outcome == 0), 1 - probability, -1)),
        ("largest error", np.where(usable, error, -1)),
        ("closest call", np.where(usable, 1 - np.abs(probability - 0.5), -1)),
    )
    chosen: list[tuple[int, str]] = []
    for reason, worth in rules:
        left = worth.copy()
        left[[k for k, _ in chosen]] = -1
        if left.max() >= 0 and len(chosen) < 3:
            chosen.append((int(np.argmax(left)), reason))
    return chosen


def saliency_view(
    predictor: Predictor, case: Case, spacing_mm: tuple[float, float, float], title: str
) -> SaliencyView:
    """Everything that a saliency picture of this case shows.

    The outline is the given lesion where that is a sequence, else bright DWI with low ADC as the model sees
    them: a guide for the eye, not the measured lesion. A study whose only volume is a lesion is shown over
    the template brain, which is nobody's own anatomy but tells where the lesion lies.
    """
    assert case.volume is not None  # choose_examples takes no other
    sequences = predictor.config.sequences
    values = dict(zip(sequences, decode(np.asarray(case.volume), sequences), strict=True))
    there = [s for s, present in zip(sequences, case.sequence_present, strict=True) if present]
    shown = next(name for name in BACKGROUNDS if name in there)
    if shown == "lesion":
        background, name = _template(values[shown].shape, spacing_mm), "template brain (ICBM152)"
    else:
        code = np.asarray(case.volume)[sequences.index(shown)]
        # code 0 is air, which decodes to the brain's mean
        background, name = np.where(code > 0, values[shown], values[shown].min()), shown.upper()
    return SaliencyView(
        title=title,
        background=background,
        saliency=predictor.saliency(case),
        lesion=_outline({name: values[name] for name in there}),
        spacing_mm=spacing_mm,
        planes=case.planes,
        background_name=name,
        outline_name="lesion as given" if "lesion" in there else "bright DWI with low ADC",
    )


@lru_cache(maxsize=2)
def _template(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> npt.NDArray[np.float32]:
    """ICBM152's T1 brain on the study's grid."""
    import nibabel as nib

    image: Any = nib.load(template_path("t1"))
    return resample(np.asarray(image.dataobj, np.float32), image.affine, Grid(shape, spacing_mm))


def _outline(values: dict[str, npt.NDArray[np.float32]]) -> npt.NDArray[np.bool_] | None:
    from scipy import ndimage

    if "lesion" in values:
        return np.asarray(values["lesion"] > 0.5)
    if "dwi" not in values or "adc" not in values:
        return None
    adc = values["adc"]
    labels, _ = ndimage.label((values["dwi"] > BRIGHT_DWI) & (adc > 0) & (adc < LOW_ADC))
    large = np.bincount(labels.ravel()) >= MIN_VOXELS
    large[0] = False
    return np.asarray(large[labels])
