"""The model card: what was built, on whom, how well it did, and what it must not be used for.

Item numbers are those of TRIPOD+AI (Collins et al., BMJ 385:e078378, 2024), sections those of CLAIM (Tejani
et al., Radiology: AI 6:e240300, 2024). An item that a run cannot answer by itself is left to a person.
"""

from collections.abc import Iterable

from willis.evaluation.results import Evaluation, Interval, Rival

NOTICE = (
    "> **For research only.** This model is not a medical device. It must not be used to diagnose, to treat "
    "or to withhold treatment."
)
_OUTCOMES = {
    "mrs_90d": "modified Rankin scale at 90 days, poor = 3-6",
    "mrs": "modified Rankin scale as the source gives it (not known to be at 90 days), poor = 3-6",
}


def model_card(evaluation: Evaluation) -> str:
    """Return the card as Markdown."""
    parts = (
        "# Model card",
        NOTICE,
        _headline(evaluation),
        "## Beside its rivals, on the same test patients",
        rivals_table(evaluation),
        "## Reporting checklist",
        _checklist(evaluation),
        "## Not measured in this run",
        _bullets(f"{item.name}: {item.reason}" for item in evaluation.not_measured),
    )
    return "\n\n".join(parts) + "\n"


def rivals_table(evaluation: Evaluation) -> str:
    """Return controls, baselines and scores as one Markdown table; the lead is paired."""
    lines = ["| predictor | AUC | the model's lead over it |", "|---|---|---|"]
    lines.append(f"| **Willis, all modalities** | {evaluation.auc:.3f} | |")
    if evaluation.ceiling is not None:
        lead = evaluation.ceiling.lead_over_truth
        lines.append(f"| true probability (ceiling) | {evaluation.ceiling.auc.value:.3f} | {_text(lead)} |")
    for rival in (*evaluation.controls, *evaluation.baselines, *evaluation.scores):
        lines.append(_rival_row(rival))
    return "\n".join(lines)


def _headline(e: Evaluation) -> str:
    ceiling = (
        f"The true probability reaches {e.ceiling.auc.value:.3f} on the same patients."
        if e.ceiling is not None
        else f"No ceiling is known: {e.ceiling_reason}."
    )
    return (
        f"AUC **{e.auc:.3f}** ({e.auc_low:.3f} to {e.auc_high:.3f}, DeLong {e.confidence:.0%}) on "
        f"{e.num_patients} test patients, {e.num_poor} of them with a poor outcome; source: {e.source}. "
        f"{ceiling} The standard error of such an AUC is {e.standard_error:.3f}: to show a gain of .01 takes "
        f"about {e.patients_to_show_gain_of_01:,} test patients."
    )


def _checklist(e: Evaluation) -> str:
    lines = ["| item | TRIPOD+AI | CLAIM | answer |", "|---|---|---|---|"]
    lines += [f"| {name} | {tripod} | {claim} | {answer} |" for name, tripod, claim, answer in _items(e)]
    return "\n".join(lines)


def _items(e: Evaluation) -> Iterable[tuple[str, str, str, str]]:
    splits = "; ".join(f"{s.split} {s.num_with_outcome} ({s.num_poor} poor)" for s in e.splits)
    modalities = ", ".join(f"{m.modality} {m.num_patients}" for m in e.modalities)
    yield from (
        ("Intended use", "1, 3", "Introduction", "outcome after ischaemic stroke; research"),
        ("Source of data", "5", "Data", e.source),
        ("Outcome", "8", "Reference standard", _OUTCOMES.get(e.outcome, e.outcome)),
        ("Predictors", "9", "Data", "volumes and measured facts; clinical table at admission; report"),
        ("Sample size", "10", "Data partitions", f"patients with an outcome: {splits}"),
        ("Missing data", "11", "Data", f"masked; of {e.num_patients} test patients have: {modalities}"),
        ("Splits", "12a", "Data partitions", "by a hash of the patient id; no patient is in two splits"),
        ("Model", "12c", "Model", "image, text and table encoders with fusion (docs/method.md)"),
        ("Tuning", "12c", "Training", "stopping, threshold: validation; temperature, sets: calibration"),
        ("Measures", "12e", "Evaluation", "discrimination, calibration, usefulness, coverage; intervals"),
        ("Fairness", "14", "Evaluation", f"{len(e.subgroups)} subgroups in evaluation.json"),
        ("Output and threshold", "15", "Evaluation", _threshold(e)),
        ("Calibration", "23a", "Model performance", _calibration(e)),
        ("Certainty", "23a", "Model performance", _certainty(e)),
        ("Differences between groups", "23b", "Model performance", _groups(e)),
        ("Explanation", "-", "Evaluation", _attribution(e)),
        ("Limits", "26", "Discussion", _limits(e)),
        ("Ethics, funding, protocol, registration", "17-19", "Other information", "left to people"),
    )


def _groups(e: Evaluation) -> str:
    measured = [s for s in e.subgroups if s.auc is not None]
    shown = ", ".join(
        f"{s.group} {s.level} {s.auc.value:.2f} (n {s.num_patients})" for s in measured if s.auc
    )
    return f"AUC: {shown}" if shown else "every group is too small for an AUC"


def _calibration(e: Evaluation) -> str:
    c = e.calibration
    slope = "not estimable" if c.slope is None else f"{c.slope:.2f}"
    return (
        f"Brier {_text(c.brier)}, skill {_text(c.brier_skill)}; ECE {c.ece:.3f} (perfect model: up to "
        f"{c.ece_perfect_95:.3f}); slope {slope}"
    )


def _threshold(e: Evaluation) -> str:
    t = e.at_threshold
    return (
        f"at {t.threshold:.3f}: sensitivity {_text(t.sensitivity)}, specificity {_text(t.specificity)}, "
        f"accuracy {_text(t.accuracy)}, F1 {_text(t.f1)}"
    )


def _certainty(e: Evaluation) -> str:
    c = e.conformal
    failing = [f"{g.group} {g.level}" for g in c.subgroups if g.verdict == "too low"]
    return (
        f"sets promised {c.target:.0%}, found {c.overall.coverage:.0%} ({c.overall.low:.0%} to "
        f"{c.overall.high:.0%}); one class only in {c.share_certain:.0%}; too low in: "
        f"{', '.join(failing) or 'no group'}"
    )


def _attribution(e: Evaluation) -> str:
    shares = ", ".join(f"{s.modality} {s.mean_absolute:.3f}" for s in e.attribution)
    return f"mean absolute Shapley value: {shares}; saliency maps"


def _limits(e: Evaluation) -> str:
    made = "patients are synthetic: lesions and outcomes are drawn, anatomy is real; " if e.ceiling else ""
    return f"{made}{e.num_patients} test patients of one source; no other hospital, no later period"


def _rival_row(rival: Rival) -> str:
    if rival.auc is None:
        return f"| {rival.name} | not measured: {rival.note} | |"
    lead = "" if rival.lead is None else _text(rival.lead)
    return f"| {rival.name} | {rival.auc.value:.3f} | {lead} |"


def _text(interval: Interval) -> str:
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines) or "- nothing"
