"""What it costs that one model serves every subset of modalities, instead of one model for each.

    python -m benchmarks.missing --json out.json

The one model is that of params.yaml, which is asked of every subset while it trains; it answers for each of
the seven. Beside it, a network trained for that subset alone (`train.use_modalities`). Sizes
as in benchmarks/variants.py: 1,000 patients to learn from, 1,000 tested. Target: .02 AUC behind at most.

The default size is one for a night on two cores; `--patients 60 --tested 20 --seeds 1 --epochs 1` shows that
it runs.
"""

import argparse
from collections.abc import Iterator
from functools import partial

from benchmarks.learning_curve import add_size_arguments, tell
from benchmarks.variants import Asked, Bench, Variant
from willis.cohort.schema import MODALITIES
from willis.evaluation.metrics import Numbers
from willis.models.decision import subsets_of

TASK = "poor_outcome"
SUBSETS = tuple(tuple(name for name in MODALITIES if name in subset) for subset in subsets_of(MODALITIES))
ONE, OWN = "one model", "model of its own"


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_size_arguments(parser, "variants", patients=2000)
    arguments = parser.parse_args()
    bench = Bench.prepare(arguments)
    tell(list(measure(bench)), arguments.json, arguments)
    trained = [Variant(ONE), *(specialist(subset) for subset in SUBSETS)]
    print(f"{bench.cpu_hours(trained):.2f} CPU hours, earlier starts included")


def measure(bench: Bench) -> Iterator[dict[str, object]]:
    """Per subset: the one model, the model of its own, and the paired difference."""
    every = Variant(ONE)
    by_one = bench.scores(every, partial(answers, subsets=SUBSETS))
    for subset in SUBSETS:
        name, own = "+".join(subset), specialist(subset)
        pair = by_one[name], bench.scores(own, partial(answers, subsets=(subset,)))[name]
        yield bench.row(TASK, ONE, name, pair[0], bench.seconds(every))
        yield bench.row(TASK, OWN, name, pair[1], bench.seconds(own))
        yield bench.lead(TASK, (ONE, OWN), name, pair)


def specialist(subset: tuple[str, ...]) -> Variant:
    """A network for one subset alone, to which nothing is ever missing."""
    never_less = {"modality_dropout": 0.0, "lambda_subsets": 0.0}
    return Variant(f"{'+'.join(subset)} alone", {"use_modalities": subset, **never_less})


def answers(asked: Asked, subsets: tuple[tuple[str, ...], ...]) -> dict[str, Numbers]:
    """What a network says of the tested patients, given each of the subsets."""
    encodings = asked.predictor.encode(asked.tested.cases)
    return {"+".join(subset): asked.predictor.probabilities(encodings, subset) for subset in subsets}


if __name__ == "__main__":
    main()
