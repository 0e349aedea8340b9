"""pytorch-widedeep: an MLP on table, facts and image components, joined to one on the embedded report."""

from collections.abc import Iterator

import benchmarks.rivals.operators  # noqa: F401

# isort: split
import numpy as np
import pandas as pd
import torch
from pytorch_widedeep import Trainer
from pytorch_widedeep.callbacks import EarlyStopping
from pytorch_widedeep.models import TabMlp, WideDeep
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.rivals.given import Numbers, Part, Settings, answer, search


class ReportMlp(torch.nn.Module):
    """What the library calls `deeptext`, for a report that is embedded already."""

    def __init__(self, num_columns: int, width: int, dropout: float) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(num_columns, width), torch.nn.ReLU(), torch.nn.Dropout(dropout)
        )
        self.output_dim = width

    def forward(self, embedded: torch.Tensor) -> torch.Tensor:
        """Map (B, columns) to (B, width)."""
        return self.layers(embedded)


def candidates(generator: np.random.Generator) -> Iterator[Settings]:
    """Yield the library's own widths with more dropout, then draws."""
    yield {"widths": [200, 100], "dropout": 0.3, "learning_rate": 1e-3, "weight_decay": 1e-4}
    while True:
        width = int(2 ** generator.integers(4, 9))
        yield {
            "widths": [width] * int(generator.integers(1, 3)),
            "dropout": generator.uniform(0.1, 0.6),
            "learning_rate": 10 ** generator.uniform(-3.5, -2),
            "weight_decay": 10 ** generator.uniform(-5, -1),
        }


def fit(settings: Settings, part: Part) -> tuple[Numbers, Numbers]:
    """Train until the validation patients gain nothing for 10 epochs; the best epoch counts."""
    torch.manual_seed(part.seed)
    texts = [name for name in part.train if name.startswith("text_")]
    others = [name for name in part.train if not name.startswith("text_")]
    train, validation, test = _scaled(part, others)
    reports = _scaled(part, texts) if texts else ()
    model = _model(settings, train.shape[1], len(texts))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings["learning_rate"], weight_decay=settings["weight_decay"]
    )
    stop = EarlyStopping(monitor="val_loss", patience=10, restore_best_weights=True)
    trainer = Trainer(
        model,
        objective="binary",
        optimizers=optimizer,
        callbacks=[stop],
        verbose=0,
        seed=part.seed,
        num_workers=0,
    )
    told = [{"X_tab": train}, {"X_tab": validation}, {"X_tab": test}]
    for inputs, report in zip(told, reports, strict=False):
        inputs["X_text"] = report
    trainer.fit(
        X_train=told[0] | {"target": part.outcome},
        X_val=told[1] | {"target": part.validation_outcome},
        n_epochs=200,
        batch_size=64,
    )
    return tuple(trainer.predict_proba(**inputs, batch_size=512)[:, 1] for inputs in told[1:])


def _model(settings: Settings, num_columns: int, num_text: int) -> WideDeep:
    names = [f"x{k}" for k in range(num_columns)]
    tabular = TabMlp(
        column_idx={name: k for k, name in enumerate(names)},
        continuous_cols=names,
        mlp_hidden_dims=settings["widths"],
        mlp_dropout=settings["dropout"],
    )
    report = ReportMlp(num_text, settings["widths"][-1], settings["dropout"]) if num_text else None
    return WideDeep(deeptabular=tabular, deeptext=report)


def _scaled(part: Part, columns: list[str]) -> tuple[Numbers, ...]:
    """Fill and scale by the patients fitted on; what was filled is a column of its own."""
    scale = make_pipeline(SimpleImputer(add_indicator=True, keep_empty_features=True), StandardScaler())
    scale.fit(part.train[columns])
    frames: tuple[pd.DataFrame, ...] = (part.train, part.validation, part.test)
    return tuple(scale.transform(frame[columns]).astype(np.float32) for frame in frames)


if __name__ == "__main__":
    answer(lambda given: search(given, candidates, fit))
