"""The picture of a search: each trial's validation metric over its epochs."""

from pathlib import Path
from typing import Any

from willis.training.trial import Course, objective

INK, QUIET, BEST, FIRST = "#1f2933", "#9aa8b5", "#0b6e99", "#c05621"
NOTE = "Chosen on validation, so the best looks better than it is. For research, not for diagnosis."


def draw_search(path: Path, courses: list[Course], best: Course) -> None:
    """Draw one line a trial; the best and the one that params.yaml stood for are named.

    Args:
        path: PNG to write.
        courses: all trials; those without an epoch have no line.
        best: the trial that is recommended.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    stop_on = best.params.stop_on
    figure = Figure(figsize=(7.2, 4.8), layout="constrained")
    axes = figure.subplots()
    for course in sorted(courses, key=lambda one: (one.number == best.number, one.number == 0)):
        values = [objective((record,), stop_on) for record in course.records]
        epochs = range(1, len(values) + 1)
        axes.plot(
            epochs, values, marker=_end(course), markevery=[-1] if values else [], **_line(course, best)
        )
    axes.set(xlabel="epoch", ylabel="AUC on validation" if stop_on == "auc" else "loss on validation")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    num_stopped = sum(course.fate == "stopped" for course in courses)
    axes.set_title(f"{len(courses)} trials, {num_stopped} stopped early (ends marked x)", fontsize=10.5)
    axes.legend(fontsize=9, frameon=False)
    figure.supxlabel(NOTE, fontsize=8, color=INK)
    figure.savefig(path, dpi=160, metadata={"Software": None, "Description": NOTE})


def _end(course: Course) -> str:
    return "x" if course.fate != "finished" else "o"


def _line(course: Course, best: Course) -> dict[str, Any]:
    if course.number == best.number:
        return {"color": BEST, "linewidth": 2.4, "label": f"best: trial {course.number}"}
    if course.number == 0:
        return {"color": FIRST, "linewidth": 1.6, "linestyle": "--", "label": "trial 0: train as it stands"}
    return {"color": QUIET, "linewidth": 1.0}
