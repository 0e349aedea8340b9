"""How near the network comes to what can be known, and what each of its parts is worth, on a known cohort.

    python -m benchmarks.ceiling --json out.json [--preset interacting]

Sizes as in benchmarks/variants.py: 1,000 patients to learn from, 1,000 tested. Side by side, on the same
patients and resamples:

    the true probability            the Bayes ceiling: nothing may exceed it
    boosting on true latents        fitted on the same patients: table, true volume, territory, tract load ...
    boosting, logistic regression   on table and measured facts
    HAIM                            boosting on table, facts and the report's embedding
    Willis                          as in params.yaml, its controls (modalities left out, reports dealt to
                                    other patients, one report for everybody), every other fusion, each
                                    alignment loss off, and options of the table and the loss

Leads are the default network's over each of the others. The default size is one for a night on two cores;
`--patients 80 --tested 30 --seeds 1 --epochs 1` shows that it runs.
"""

import argparse
from collections.abc import Iterator

import pandas as pd

from benchmarks.learning_curve import add_size_arguments, tell
from benchmarks.variants import Asked, Bench, Scores, Variant
from willis.evaluation.baselines import fit_baseline, table_columns
from willis.evaluation.ceiling import TRUTH
from willis.evaluation.metrics import Numbers
from willis.evaluation.rivals import baselines_of, controls_of
from willis.params import EvaluateParams

LATENTS = (
    "territory", "side", "volume_ml", "num_lesions", "tract", "eloquence", "white_ml", "atrophy", "old_ml",
    "haemorrhage", "onset_to_scan_h",
)  # fmt: skip
OURS, ALL = "willis", "all"
FUSIONS = ("concat", "add", "cross_attention", "daft", "vdafm_pooled", "vdafm_token", "late")
WITHOUT = {
    "L_con off": {"lambda_contrast": 0.0},
    "L_align off": {"lambda_align": 0.0},
    "L_con and L_align off": {"lambda_contrast": 0.0, "lambda_align": 0.0},
}
OPTIONS = {
    "numbers piecewise": {"numbers": "piecewise"},
    "ft_transformer": {"table_encoder": "ft_transformer"},
    "classes balanced": {"class_weighting": "balanced"},
    "outcome binary": {"outcome": "binary"},
}


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_size_arguments(parser, "variants", patients=2000)
    parser.add_argument("--fusions", nargs="*", choices=FUSIONS, default=list(FUSIONS))
    parser.add_argument("--losses", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--options", nargs="*", choices=OPTIONS, default=list(OPTIONS))
    arguments = parser.parse_args()
    bench = Bench.prepare(arguments)
    others = others_of(bench, arguments.fusions, arguments.losses, arguments.options)
    tell(list(measure(bench, arguments.preset, others)), arguments.json, arguments)
    print(f"{bench.cpu_hours([Variant(OURS), *others]):.2f} CPU hours, earlier starts included")


def others_of(bench: Bench, fusions: list[str], losses: bool, options: list[str]) -> list[Variant]:
    """The fusions that params.yaml does not name, the default without its losses, and with options."""
    other = [Variant(name, {"fusion": name}) for name in fusions if name != bench.train.fusion]
    without = [Variant(name, off) for name, off in WITHOUT.items() if losses]
    return [*other, *without, *(Variant(name, OPTIONS[name]) for name in options)]


def measure(bench: Bench, preset: str, others: list[Variant]) -> Iterator[dict[str, object]]:
    """The default network, and everything else with the default's lead over it."""
    task = f"poor_outcome_{preset}"
    default = Variant(OURS)
    answers = bench.scores(default, ask_with_controls)
    ours = answers.pop(ALL)
    yield bench.row(task, OURS, ALL, ours, bench.seconds(default))
    rivals = {name: (scores, 0.0) for name, scores in (without_network(bench) | answers).items()}
    rivals |= {v.name: (bench.scores(v, ask_all)[ALL], bench.seconds(v)) for v in others}
    bench.refuse_leaks({OURS: ours} | {name: scores for name, (scores, _) in rivals.items()})
    for name, (scores, seconds) in rivals.items():
        yield bench.row(task, name, ALL, scores, seconds)
        yield bench.lead(task, (OURS, name), ALL, (ours, scores))


def ask_all(asked: Asked) -> dict[str, Numbers]:
    """What a network says, given all modalities."""
    return {ALL: asked.predictor.probabilities(asked.predictor.encode(asked.tested.cases))}


def ask_with_controls(asked: Asked) -> dict[str, Numbers]:
    """The same, and with less to go on; of reports dealt anew, one deal per seed."""
    predictor, tested = asked.predictor, asked.tested
    encodings = predictor.encode(tested.cases)
    params = EvaluateParams(num_permutations=1, seed=asked.seed)
    controls = controls_of(predictor, encodings, tested, asked.learned, params)
    rivals, _ = baselines_of(predictor, asked.learned, tested.frame, asked.seed)
    scored = {item.name: item.scores[0] for item in (*controls, *rivals)}
    return {ALL: predictor.probabilities(encodings)} | scored


def without_network(bench: Bench) -> Scores:
    """The true probability, and boosting that is told the true latents of the patients to learn from."""
    truth = pd.read_parquet(bench.cohort / TRUTH / "truth.parquet")
    told = [f"true_{name}" for name in LATENTS]
    latents = truth[["patient_id", *LATENTS]].set_axis(["patient_id", *told], axis=1)
    learned, tested = (
        bench.rows_of(patients).merge(latents, on="patient_id", how="left", validate="one_to_one")
        for patients in (bench.patients.pool, bench.patients.tested)
    )
    columns = (*table_columns(learned), *told)
    best = truth.set_index("patient_id").loc[list(bench.patients.tested), "p_poor"].to_numpy()
    boosted = [
        fit_baseline("boosting", "true latents", learned, columns, seed).predict(tested)
        for seed in bench.seeds
    ]
    return {"true probability": [best], "boosting on true latents": boosted}


if __name__ == "__main__":
    main()
