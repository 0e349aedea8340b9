"""Everything that the headline is held against on the same test patients."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from willis.errors import CohortError
from willis.evaluation.baselines import KINDS, fact_columns, fit_baseline, table_columns
from willis.evaluation.comparison import Comparison, Scored
from willis.evaluation.controls import commonest, image_controls, subset_controls, text_controls
from willis.evaluation.metrics import Numbers
from willis.evaluation.patients import Patients
from willis.evaluation.results import NotMeasured, Rival
from willis.evaluation.scores import SCORES, astral_probability, score
from willis.inference import Encodings, Predictor
from willis.models.text import TextEncoder
from willis.params import EvaluateParams

if TYPE_CHECKING:
    import pandas as pd

TEXT_PREFIX = "text_"
HAIM = "boosting on table, facts and report embedding (HAIM)"
NEEDS_TRAINING = (
    ("L_con off", "needs a training run of its own (params.yaml: train.lambda_contrast: 0)"),
    ("L_align off", "needs a training run of its own (params.yaml: train.lambda_align: 0)"),
    ("L_con and L_align off", "needs a training run of its own (both 0)"),
    ("leave-one-site-out", "needs training on other splits (`willis evaluate --by site`)"),
    ("later periods", "needs training on other splits (`willis evaluate --by period`)"),
)


@dataclass(frozen=True)
class Rivals:
    """What was compared, and what could not be."""

    controls: tuple[Rival, ...]
    baselines: tuple[Rival, ...]
    scores: tuple[Rival, ...]
    astral: Numbers | None
    not_measured: tuple[NotMeasured, ...]
    raw: dict[str, Numbers]
    """Name -> scores (n,), for the leak check and the ROC plot."""


def compare_with_rivals(
    comparison: Comparison,
    predictor: Predictor,
    encodings: Encodings,
    test: Patients,
    train: "pd.DataFrame",
    params: EvaluateParams,
) -> Rivals:
    """Measure controls, baselines and bedside scores.

    Args:
        comparison: outcome and headline of the test patients.
        predictor: calibrated.
        encodings: of the test patients.
        test: patients with an outcome.
        train: rows of the training split; all that baselines and scores are fitted on.
        params: permutations and seed.
    """
    controls = controls_of(predictor, encodings, test, train, params)
    baselines, missed = baselines_of(predictor, train, test.frame, params.seed)
    scores, unscored, astral = scores_of(train, test.frame)
    absent = [] if any(c.name == "text permuted" for c in controls) else [_no_text()]
    return Rivals(
        controls=tuple(comparison.rival(c, "control") for c in controls),
        baselines=tuple(comparison.rival(b, "baseline") for b in baselines),
        scores=tuple(comparison.rival(s, "score") for s in scores) + unscored,
        astral=astral,
        not_measured=(*absent, *missed, *(NotMeasured(name=n, reason=r) for n, r in NEEDS_TRAINING)),
        raw={s.name: s.scores[0] for s in (*controls, *baselines, *scores) if len(s.scores) == 1},
    )


def controls_of(
    predictor: Predictor, encodings: Encodings, test: Patients, train: "pd.DataFrame", params: EvaluateParams
) -> tuple[Scored, ...]:
    """The network itself with less to go on."""
    texts = train.loc[train["has_text"].astype(bool), "text"].astype(str).tolist()
    constant = commonest(texts)
    return (
        *subset_controls(predictor, encodings),
        *image_controls(predictor, encodings, test.cases),
        *text_controls(
            predictor, encodings, test.cases, constant, params.num_permutations, params.seed
        ),
    )  # fmt: skip


def baselines_of(
    predictor: Predictor, train: "pd.DataFrame", test: "pd.DataFrame", seed: int
) -> tuple[tuple[Scored, ...], tuple[NotMeasured, ...]]:
    """Logistic regression and boosting on table, facts and both, and boosting on those with embeddings."""
    table, facts = table_columns(train), fact_columns(train)
    found, missed = [], []
    for on, columns in (("table", table), ("facts", facts), ("table and facts", (*table, *facts))):
        for kind in KINDS:
            name = f"{kind} on {on}"
            try:
                baseline = fit_baseline(kind, name, train, columns, seed)
            except CohortError as error:
                missed.append(NotMeasured(name=name, reason=str(error)))
            else:
                found.append(Scored(name, baseline.predict(test)[None]))
    if train["has_text"].any() and found:
        encoder = predictor.text_encoder
        wide, wide_test = _with_embedding(train, encoder), _with_embedding(test, encoder)
        embedded = tuple(c for c in wide.columns if str(c).startswith(TEXT_PREFIX))
        baseline = fit_baseline("boosting", HAIM, wide, (*table, *facts, *embedded), seed)
        found.append(Scored(HAIM, baseline.predict(wide_test)[None]))
    return tuple(found), tuple(missed)


def scores_of(
    train: "pd.DataFrame", test: "pd.DataFrame"
) -> tuple[tuple[Scored, ...], tuple[Rival, ...], Numbers | None]:
    """Bedside scores; those with an item that nobody records come back as rivals without a number."""
    found, absent, astral = [], [], None
    for name in SCORES:
        result = score(name, train, test)
        if result.points is None:
            absent.append(Rival(name=name, kind="score", auc=None, lead=None, note=result.reason))
            continue
        note = f"{result.num_filled} of {len(test)} patients lack an item; training means stand in"
        if name == "DRAGON":
            note += "; derived on patients who had thrombolysis"
        found.append(Scored(name, result.points[None], is_probability=False, note=note))
        if name == "ASTRAL":
            astral = astral_probability(result.points)
    return tuple(found), tuple(absent), astral


def _with_embedding(frame: "pd.DataFrame", encoder: TextEncoder) -> "pd.DataFrame":
    import pandas as pd

    has_text = frame["has_text"].to_numpy(bool)
    vectors = encoder.encode(frame.loc[has_text, "text"].astype(str).tolist())
    rows = np.full((len(frame), vectors.shape[1]), np.nan)
    rows[has_text] = vectors
    names = [f"{TEXT_PREFIX}{k:03d}" for k in range(rows.shape[1])]
    return pd.concat([frame, pd.DataFrame(rows, columns=names, index=frame.index)], axis=1)


def _no_text() -> NotMeasured:
    return NotMeasured(
        name="text permuted", reason="fewer than two test patients have a report, or the network reads none"
    )
