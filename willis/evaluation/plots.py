"""The pictures of an evaluation. Figures are drawn off screen; nothing here decides a number."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from willis.evaluation.metrics import Numbers, auc
from willis.evaluation.results import CalibrationResult, DecisionCurve, LearningCurve, ModalityShare

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

INK, QUIET, MODEL, TRUTH = "#1f2933", "#66788a", "#0b6e99", "#c05621"
RIVALS: tuple[tuple[str, Any], ...] = (
    ("#7b4ea3", "-"),
    ("#2f7d4f", (0, (5, 1.5))),
    ("#a16207", "-."),
    ("#b83280", (0, (1.5, 1))),
)
"""Colour and dashes, so that curves can be told apart without colour; more than four begin anew."""
MODALITY_COLOURS = {"image": "#0b6e99", "text": "#6b9080", "table": "#c05621"}
OUTLINE = "#4fd1c5"
_DPI = 160
_SQUARE, _FLAT = (5.4, 6.3), (5.4, 4.0)
"""Width and height in inches; ROC and reliability stand side by side, as do decision and attribution."""
_LABEL_CHARACTERS = 60
_VIEWS = ((2, "axial", 0), (1, "coronal", 2), (0, "sagittal", 1))
"""Axis that is cut, name, and which of a study's planes shows the same."""
_SMALL_MM, _RING_MM = 20.0, 14.0


@dataclass(frozen=True)
class SaliencyView:
    """What one saliency picture shows.

    Attributes:
        title: one line above the picture.
        background: (X, Y, Z) grey values.
        saliency: (X, Y, Z), not negative.
        lesion: (X, Y, Z) bool, drawn as an outline, or None.
        spacing_mm: edge of a voxel along X, Y, Z.
        planes: (P, H, W) codes of 2-D planes, shown below, or None: axial, sagittal, coronal; rows run
            downwards, columns of the axial and the coronal plane towards the patient's right.
        background_name: what the grey values are.
        outline_name: what the outline is.
    """

    title: str
    background: npt.NDArray[np.float32]
    saliency: npt.NDArray[np.float32]
    lesion: npt.NDArray[np.bool_] | None
    spacing_mm: tuple[float, float, float]
    planes: npt.NDArray[np.uint8] | None = None
    background_name: str = "image"
    outline_name: str = "lesion"

    def caption(self) -> str:
        """What is grey, outlined, coloured and, with planes, cut out."""
        text = f"{self.background_name}; outline: {self.outline_name}"
        if self.planes is None:
            return text[0].upper() + text[1:]
        return f"Above: {text}. Below: this patient's FLAIR as the model sees it, the lesion cut out (black)"


def draw_roc(
    path: Path, outcome: Numbers, model: Numbers, rivals: Mapping[str, Numbers], truth: Numbers | None
) -> None:
    """ROC curve of the model over those of its rivals, with the true probability's where it is known."""
    figure, axes = _canvas(*_SQUARE)
    axes.plot([0, 1], [0, 1], color=QUIET, linewidth=0.8, linestyle=":")
    curves: list[tuple[str, Numbers, dict[str, Any]]] = [
        ("Willis", model, {"color": MODEL, "linewidth": 2.8, "zorder": 4})
    ]
    if truth is not None:
        ceiling = {"color": TRUTH, "linewidth": 1.8, "linestyle": "--", "zorder": 3}
        curves.append(("true probability (ceiling)", truth, ceiling))
    for number, (name, values) in enumerate(sorted(rivals.items(), key=lambda r: -auc(outcome, r[1]))):
        colour, dashes = RIVALS[number % len(RIVALS)]
        curves.append((name, values, {"color": colour, "linewidth": 1.4, "linestyle": dashes}))
    labels = [f"{auc(outcome, values):.3f}  {name}" for name, values, _ in curves]
    for label, (_, values, style) in zip(labels, curves, strict=True):
        axes.plot(*roc_points(outcome, values), label=_wrapped(label), **style)
    title = f"ROC curves and AUC, {outcome.size} test patients"
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.set_title(title, fontsize=10.5)
    axes.set_aspect("equal")
    figure.legend(fontsize=9, frameon=False, loc="outside lower center")
    _save(figure, path, f"{title}: {'; '.join(labels)}")


def draw_reliability(path: Path, result: CalibrationResult, probability: Numbers) -> None:
    """Share of poor outcomes against probability in ten bins of equal size, above where patients lie."""
    figure = _figure(*_SQUARE)
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(5, 1))
    for each in (axes, below):
        _plain(each)
    axes.plot([0, 1], [0, 1], color=QUIET, linewidth=0.8, linestyle=":", label="perfect")
    axes.plot(
        [b.mean_probability for b in result.bins], [b.share_poor for b in result.bins],
        "o-", color=MODEL, linewidth=1.8, markersize=6, label="tenths of the patients", clip_on=False,
    )  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="share with a poor outcome")
    title = f"ECE {result.ece:.3f}; a perfect model stays below {result.ece_perfect_95:.3f} in 95 %"
    axes.set_title(title, fontsize=10.5)
    axes.legend(fontsize=9, frameon=False, loc="upper left")
    below.hist(probability, bins=20, range=(0, 1), color=MODEL, alpha=0.45)
    below.set(xlabel="predicted probability of a poor outcome", ylabel="patients")
    figure.align_ylabels()
    _save(figure, path, f"Reliability: predicted probability against the share of poor outcomes. {title}")


def draw_decision(path: Path, curve: DecisionCurve) -> None:
    """Net benefit over threshold probabilities."""
    figure, axes = _canvas(*_FLAT)
    axes.axhline(0, color=INK, linewidth=0.9, label="treat nobody")
    axes.plot(
        curve.thresholds, curve.treat_all, color=QUIET, linewidth=1.4, linestyle="--", label="treat everybody"
    )
    if curve.astral is not None:
        axes.plot(curve.thresholds, curve.astral, color=TRUTH, linewidth=1.4, linestyle="-.", label="ASTRAL")
    axes.plot(curve.thresholds, curve.model, color=MODEL, linewidth=2.4, label="Willis")
    top = max(max(curve.model), max(curve.treat_all), 0.05)
    axes.set(xlabel="threshold probability", ylabel="net benefit per patient", ylim=(-0.1, top * 1.1))
    axes.set_title("Decision curve; higher is better", fontsize=10.5)
    axes.legend(fontsize=9, frameon=False, loc="upper right")
    _save(figure, path, "Decision curve: net benefit per patient over threshold probabilities")


def draw_learning_curve(path: Path, curve: LearningCurve, models: Sequence[str]) -> None:
    """AUC of these models over the number of patients they learned from; the network's interval is shaded."""
    figure, axes = _canvas(*_SQUARE)
    numbers = [point.num_labels for point in curve.points]
    rivals = iter(RIVALS)
    labels = []
    for name in models:
        areas = [next(m.auc for m in point.result.models if m.name == name) for point in curve.points]
        ours = name == "willis"
        colour, dashes = (MODEL, "-") if ours else next(rivals)
        label = f"{'Willis' if ours else name}: {areas[0].value:.3f} to {areas[-1].value:.3f}"
        axes.plot(
            numbers, [it.value for it in areas], marker="o", markersize=5, color=colour, linestyle=dashes,
            linewidth=2.4 if ours else 1.4, label=label,
        )  # fmt: skip
        if ours:
            low, high = [it.low for it in areas], [it.high for it in areas]
            axes.fill_between(numbers, low, high, color=colour, alpha=0.12, linewidth=0)
        labels.append(label)
    axes.set_xscale("log")
    axes.set_xticks(numbers, [str(number) for number in numbers])
    axes.minorticks_off()
    axes.set(xlabel="patients to learn from", ylabel="AUC")
    title = f"Learning curve, {curve.points[0].result.num_patients} test patients"
    axes.set_title(title, fontsize=10.5)
    figure.legend(fontsize=9, frameon=False, loc="outside lower center")
    _save(figure, path, f"{title}: {'; '.join(labels)}")


def draw_attribution(path: Path, shares: Mapping[str, Numbers], means: tuple[ModalityShare, ...]) -> None:
    """Shapley value of each modality, one dot per test patient, with the mean absolute value named."""
    figure, axes = _canvas(*_FLAT)
    jitter = np.random.default_rng(0)
    names = [share.modality for share in means]
    for row, share in enumerate(means):
        values = shares[share.modality]
        height = row + jitter.uniform(-0.16, 0.16, values.size)
        axes.scatter(values, height, s=14, alpha=0.6, linewidth=0, color=MODALITY_COLOURS[share.modality])
        axes.annotate(
            f"mean |share| {share.mean_absolute:.3f}", (1.0, row + 0.27),
            xycoords=("axes fraction", "data"), ha="right", fontsize=9, color=INK,
        )  # fmt: skip
    axes.axvline(0, color=QUIET, linewidth=0.8)
    axes.set_yticks(range(len(names)), names, fontsize=10)
    axes.set(xlabel="added to the probability (Shapley value)", ylim=(-0.5, len(names) - 0.4))
    axes.set_title("What each modality added, one dot per test patient", fontsize=10.5)
    found = "; ".join(f"{share.modality} {share.mean_absolute:.3f}" for share in means)
    _save(figure, path, f"What each modality added to the probability; mean absolute share: {found}")


def draw_saliency(path: Path, view: SaliencyView) -> None:
    """Three slices through the lesion, or else the strongest saliency; the patient's right is at the left."""
    across = [_edges_mm(view, axis)[0] for axis, _, _ in _VIEWS]
    height = max(_edges_mm(view, axis)[1] for axis, _, _ in _VIEWS)
    rows = 1 if view.planes is None else 2
    width = 5.6
    title, caption = _wrapped(view.title, 66), _wrapped(view.caption(), 84)
    lines = title.count("\n") + caption.count("\n")
    figure = _figure(width, rows * (width * height / sum(across) + 0.22) + 0.92 + 0.16 * lines)
    grid = figure.subplots(rows, 3, squeeze=False, width_ratios=across)
    strongest = max(float(np.quantile(view.saliency, 0.999)), 1e-12)
    centre = _centre(view)
    for (axis, name, plane), axes, wide in zip(_VIEWS, grid.T, across, strict=True):
        heat = _draw_slice(axes[0], view, axis, centre[axis], strongest, height)
        axes[0].set_title(name, fontsize=9.5, color=INK)
        if view.planes is not None:
            shown = view.planes[plane] if plane < len(view.planes) else None
            _draw_plane(axes[1], shown, axis, wide / height)
            axes[1].set_title(f"FLAIR, {name}", fontsize=9.5, color=INK)
    bar = figure.colorbar(heat, ax=grid, location="bottom", shrink=0.45, aspect=36, pad=0.02)
    bar.set_label("saliency, share of the strongest", fontsize=8.5, color=INK)
    bar.ax.tick_params(labelsize=8, colors=INK)
    figure.suptitle(title, fontsize=10, color=INK)
    figure.supxlabel(caption, fontsize=8.5, color=INK)
    _save(figure, path, f"Axial, coronal and sagittal slice. {view.caption()}")


def roc_points(outcome: Numbers, score: Numbers) -> tuple[Numbers, Numbers]:
    """False and true positive rates over all thresholds, from (0, 0) to (1, 1); ties move together."""
    order = np.argsort(-score, kind="stable")
    last = np.append(np.flatnonzero(np.diff(score[order])), score.size - 1)
    hits = np.cumsum(outcome[order])[last]
    alarms = last + 1 - hits
    return np.append(0.0, alarms / alarms[-1]), np.append(0.0, hits / hits[-1])


def _draw_slice(
    axes: "Axes", view: SaliencyView, axis: int, index: int, strongest: float, height_mm: float
) -> "AxesImage":
    """Show one slice upright, X flipped so that the patient's right is at the left; return the saliency."""

    def cut(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        flat = np.take(values, index, axis=axis).T
        return np.asarray(flat if axis == 0 else flat[:, ::-1])

    across, up = _edges_mm(view, axis)
    low_mm = (height_mm - up) / 2
    place: dict[str, Any] = {"origin": "lower", "extent": (0, across, low_mm, low_mm + up)}
    low, high = np.quantile(view.background, [0.02, 0.998])
    grey, heat = cut(view.background), cut(view.saliency)
    axes.imshow(grey, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), interpolation="bicubic", **place)
    shown = np.ma.masked_less(heat / strongest, 0.15)
    image = axes.imshow(shown, cmap="inferno", alpha=0.6, vmin=0, vmax=1, interpolation="nearest", **place)
    if view.lesion is not None and cut(view.lesion).any():
        mask = cut(view.lesion)
        axes.contour(mask.astype(float), levels=[0.5], colors=OUTLINE, linewidths=1.2, **place)
        _ring(axes, mask, across / mask.shape[1], up / mask.shape[0], low_mm)
    axes.set(xlim=(0, across), ylim=(0, height_mm))
    _dark(axes, axis)
    return image


def _ring(axes: "Axes", mask: npt.NDArray[np.bool_], wide: float, high: float, low_mm: float) -> None:
    """Circle a lesion that is easily overlooked; `wide` and `high` are a voxel's edges in mm."""
    from matplotlib.patches import Circle

    rows, columns = np.nonzero(mask)
    if max(np.ptp(columns) * wide, np.ptp(rows) * high) < _SMALL_MM:
        middle = ((columns.mean() + 0.5) * wide, low_mm + (rows.mean() + 0.5) * high)
        axes.add_patch(Circle(middle, _RING_MM, fill=False, color=OUTLINE, linewidth=0.9, linestyle=":"))


def _draw_plane(axes: "Axes", plane: npt.NDArray[np.uint8] | None, axis: int, ratio: float) -> None:
    """Show what a plane holds in a dark field `ratio` times as wide as high, flipped as the slices are."""
    if plane is not None and plane.any():
        rows, columns = (np.flatnonzero(plane.any(axis=other)) for other in (1, 0))
        held = plane[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        high, wide = held.shape
        half = max(high, wide / ratio) * 0.52
        axes.imshow(
            held if axis == 0 else held[:, ::-1], cmap="gray", vmin=0, vmax=255, interpolation="bilinear",
            extent=(-wide / 2, wide / 2, -high / 2, high / 2),
        )  # fmt: skip
        axes.set(xlim=(-half * ratio, half * ratio), ylim=(-half, half))
    else:
        axes.set_box_aspect(1 / ratio)
    _dark(axes, axis)


def _dark(axes: "Axes", axis: int) -> None:
    """A black field without frame, its sides marked."""
    axes.set_facecolor("black")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    for place, side, letter in zip((0.03, 0.97), ("left", "right"), "PA" if axis == 0 else "RL", strict=True):
        axes.text(
            place, 0.97, letter, transform=axes.transAxes, ha=side, va="top", color="white",
            fontsize=10, fontweight="bold",
        )  # fmt: skip


def _edges_mm(view: SaliencyView, axis: int) -> tuple[float, float]:
    """Width and height in mm of a slice cut along `axis`."""
    across, up = (view.background.shape[a] * view.spacing_mm[a] for a in range(3) if a != axis)
    return across, up


def _centre(view: SaliencyView) -> tuple[int, int, int]:
    strongest = view.saliency if view.lesion is None or not view.lesion.any() else view.lesion
    sums = [
        np.asarray(strongest, np.float64).sum(axis=tuple(a for a in range(3) if a != axis))
        for axis in range(3)
    ]
    return int(np.argmax(sums[0])), int(np.argmax(sums[1])), int(np.argmax(sums[2]))


def _wrapped(text: str, characters: int = _LABEL_CHARACTERS) -> str:
    return textwrap.fill(text, characters)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _canvas(width: float, height: float) -> "tuple[Figure, Axes]":
    figure = _figure(width, height)
    axes = figure.subplots()
    _plain(axes)
    return figure, axes


def _plain(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9, colors=INK)


def _save(figure: "Figure", path: Path, description: str) -> None:
    """Write the picture; the description travels with it, for those who cannot see it."""
    figure.draw_without_rendering()  # a square among texts finds its size only in the second layout
    figure.savefig(path, metadata={"Software": None, "Description": description})
