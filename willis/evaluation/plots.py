"""The pictures of an evaluation. Figures are drawn off screen; nothing here decides a number."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from willis.evaluation.metrics import Numbers, auc
from willis.evaluation.results import CalibrationResult, DecisionCurve, ModalityShare

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, QUIET, MODEL, TRUTH = "#1f2933", "#9aa5b1", "#0b6e99", "#c05621"
RIVALS = ("#7b8794", "#829ab1", "#9c89b8", "#6b9080", "#b08968", "#94a3b8")
MODALITY_COLOURS = {"image": "#0b6e99", "text": "#6b9080", "table": "#c05621"}
_DPI = 110


@dataclass(frozen=True)
class SaliencyView:
    """What one saliency picture shows.

    Attributes:
        title: one line above the picture.
        background: (X, Y, Z) grey values.
        saliency: (X, Y, Z), not negative.
        lesion: (X, Y, Z) bool, drawn as an outline, or None.
        spacing_mm: edge of a voxel along X, Y, Z.
        planes: (P, H, W) codes of 2-D planes, shown below, or None.
    """

    title: str
    background: npt.NDArray[np.float32]
    saliency: npt.NDArray[np.float32]
    lesion: npt.NDArray[np.bool_] | None
    spacing_mm: tuple[float, float, float]
    planes: npt.NDArray[np.uint8] | None = None


def draw_roc(
    path: Path, outcome: Numbers, model: Numbers, rivals: Mapping[str, Numbers], truth: Numbers | None
) -> None:
    """ROC curve of the model over those of its rivals, with the true probability's where it is known."""
    figure, axes = _canvas(5.6, 6.0)
    axes.plot([0, 1], [0, 1], color=QUIET, linewidth=0.8, linestyle=":")
    for colour, (name, values) in zip(RIVALS * 3, rivals.items(), strict=False):
        axes.plot(
            *roc_points(outcome, values), color=colour, linewidth=1, label=_labelled(name, outcome, values)
        )
    if truth is not None:
        label = _labelled("true probability (ceiling)", outcome, truth)
        axes.plot(*roc_points(outcome, truth), color=TRUTH, linewidth=1.8, linestyle="--", label=label)
    axes.plot(
        *roc_points(outcome, model), color=MODEL, linewidth=2.4, label=_labelled("Willis", outcome, model)
    )
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", title=f"{outcome.size} test patients")
    axes.set_aspect("equal")
    axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)
    _save(figure, path)


def draw_reliability(path: Path, result: CalibrationResult, probability: Numbers) -> None:
    """Share of poor outcomes against probability in ten bins of equal size, above where patients lie."""
    figure, axes = _canvas(5.6, 5.2)
    axes.plot([0, 1], [0, 1], color=QUIET, linewidth=0.8, linestyle=":")
    axes.hist(probability, bins=20, range=(0, 1), weights=np.full(probability.size, 1 / probability.size),
              color=MODEL, alpha=0.15, label="share of patients")  # fmt: skip
    axes.plot(
        [b.mean_probability for b in result.bins], [b.share_poor for b in result.bins],
        "o-", color=MODEL, linewidth=1.6, markersize=5, label="tenths of the patients",
    )  # fmt: skip
    axes.set(
        xlim=(0, 1), ylim=(0, 1), xlabel="predicted probability of a poor outcome",
        ylabel="share with a poor outcome",
        title=f"ECE {result.ece:.3f}; a perfect model stays below {result.ece_perfect_95:.3f} in 95 %",
    )  # fmt: skip
    axes.title.set_fontsize(9)
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    _save(figure, path)


def draw_decision(path: Path, curve: DecisionCurve) -> None:
    """Net benefit over threshold probabilities."""
    figure, axes = _canvas(5.6, 4.2)
    axes.axhline(0, color=INK, linewidth=0.8, label="treat nobody")
    axes.plot(curve.thresholds, curve.treat_all, color=QUIET, linewidth=1.2, label="treat everybody")
    if curve.astral is not None:
        axes.plot(curve.thresholds, curve.astral, color=TRUTH, linewidth=1.2, label="ASTRAL")
    axes.plot(curve.thresholds, curve.model, color=MODEL, linewidth=2.2, label="Willis")
    top = max(max(curve.model), max(curve.treat_all), 0.05)
    axes.set(xlabel="threshold probability", ylabel="net benefit per patient", ylim=(-0.1, top * 1.1))
    axes.legend(fontsize=8, frameon=False)
    _save(figure, path)


def draw_attribution(path: Path, shares: Mapping[str, Numbers], means: tuple[ModalityShare, ...]) -> None:
    """Shapley value of each modality, one dot per test patient, with the mean absolute value named."""
    figure, axes = _canvas(5.6, 3.2)
    jitter = np.random.default_rng(0)
    names = [share.modality for share in means]
    for row, share in enumerate(means):
        values = shares[share.modality]
        height = row + jitter.uniform(-0.18, 0.18, values.size)
        axes.scatter(values, height, s=11, alpha=0.55, linewidth=0, color=MODALITY_COLOURS[share.modality])
        axes.annotate(
            f"mean |share| {share.mean_absolute:.3f}", (1.0, row + 0.26),
            xycoords=("axes fraction", "data"), ha="right", fontsize=8, color=INK,
        )  # fmt: skip
    axes.axvline(0, color=QUIET, linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="what the modality added to the probability (Shapley)", ylim=(-0.5, len(names) - 0.4))
    _save(figure, path)


def draw_saliency(path: Path, view: SaliencyView) -> None:
    """Three slices through the lesion, or else the strongest saliency; the patient's right is at the left."""
    centre = _centre(view)
    rows = 1 if view.planes is None else 2
    figure = _figure(9.0, 3.4 * rows)
    grid = figure.subplots(rows, 3, squeeze=False)
    strongest = max(float(np.quantile(view.saliency, 0.999)), 1e-12)
    for axis, name, axes in zip((2, 1, 0), ("axial", "coronal", "sagittal"), grid[0], strict=True):
        _draw_slice(axes, view, axis, centre[axis], strongest)
        axes.set_title(name, fontsize=8, color=INK)
    for number, axes in enumerate(grid[1] if view.planes is not None else ()):
        if view.planes is not None and number < len(view.planes):
            axes.imshow(view.planes[number], cmap="gray", vmin=0, vmax=255)
            axes.set_title("FLAIR plane (grey where masked out)", fontsize=8, color=INK)
        axes.set_axis_off()
    figure.suptitle(view.title, fontsize=9.5, color=INK)
    _save(figure, path)


def roc_points(outcome: Numbers, score: Numbers) -> tuple[Numbers, Numbers]:
    """False and true positive rates over all thresholds, from (0, 0) to (1, 1); ties move together."""
    order = np.argsort(-score, kind="stable")
    last = np.append(np.flatnonzero(np.diff(score[order])), score.size - 1)
    hits = np.cumsum(outcome[order])[last]
    alarms = last + 1 - hits
    return np.append(0.0, alarms / alarms[-1]), np.append(0.0, hits / hits[-1])


def _draw_slice(axes: "Axes", view: SaliencyView, axis: int, index: int, strongest: float) -> None:
    """Show one slice upright, X flipped so that the patient's right is at the left."""

    def cut(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        flat = np.take(values, index, axis=axis).T
        return np.asarray(flat if axis == 0 else flat[:, ::-1])

    edges = [size for a, size in enumerate(view.spacing_mm) if a != axis]
    grey, heat = cut(view.background), cut(view.saliency)
    low, high = np.quantile(view.background, [0.02, 0.998])
    axes.imshow(
        grey, cmap="gray", origin="lower", aspect=edges[1] / edges[0], vmin=low, vmax=max(high, low + 1e-6)
    )
    shown = np.ma.masked_less(heat / strongest, 0.15)
    axes.imshow(shown, cmap="inferno", origin="lower", aspect=edges[1] / edges[0], alpha=0.6, vmin=0, vmax=1)
    if view.lesion is not None and cut(view.lesion).any():
        axes.contour(cut(view.lesion).astype(float), levels=[0.5], colors="#4fd1c5", linewidths=0.9)
    axes.set_axis_off()


def _centre(view: SaliencyView) -> tuple[int, int, int]:
    strongest = view.saliency if view.lesion is None or not view.lesion.any() else view.lesion
    sums = [
        np.asarray(strongest, np.float64).sum(axis=tuple(a for a in range(3) if a != axis))
        for axis in range(3)
    ]
    return int(np.argmax(sums[0])), int(np.argmax(sums[1])), int(np.argmax(sums[2]))


def _labelled(name: str, outcome: Numbers, values: Numbers) -> str:
    return f"{name} {auc(outcome, values):.3f}"


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _canvas(width: float, height: float) -> "tuple[Figure, Axes]":
    figure = _figure(width, height)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=INK)
    axes.title.set_fontsize(10)
    return figure, axes


def _save(figure: "Figure", path: Path) -> None:
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})
