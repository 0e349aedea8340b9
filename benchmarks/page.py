"""The page of results: docs/results.md and the pictures beside it, from docs/results/NAME.json.

    python -m benchmarks.page

A benchmark's `--json docs/results/NAME.json` renews a file, this command the page. It measures nothing: every
figure on the page stands in one of the files. A file of rows in the standard form (benchmarks/results.py)
needs nothing but to lie there; a name of `ENTRIES` gives it a heading and a sentence.
"""

import argparse
import ast
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.entries import ENTRIES, Entry
from benchmarks.results import Results, Row
from benchmarks.results_plots import LABELS, draw, labels_of

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "docs/results"
PAGE = REPOSITORY / "docs/results.md"
HEAD = """# Results

For whoever wants to know what Willis reaches, and what it does not. Made by `python -m benchmarks.page`
from docs/results/*.json, which benchmarks write; nothing on this page is typed by hand but its sentences. A
figure of README or docs that stems from a benchmark stands in one of these files: a comment `results:`
before its table or paragraph says where, and a test compares them.

Intervals are 95 % intervals. `A over B` is a paired difference on the same patients and resamples; where
its interval holds 0, nothing is shown, and its picture is grey. Seconds are those that the benchmark tells;
a run that was killed and went on may count its last start alone. Whoever runs them again: one at a time.
Threads of torch wait by spinning, so two trainings on the same cores take each other's time.
"""


def main() -> None:
    """Write the page and its pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.parse_args()
    files = sorted(RESULTS.glob("*.json"))
    for path in files:
        draw(path, Results.read(path).rows)
    PAGE.write_text(page(files))
    Console().print(f"{PAGE.relative_to(REPOSITORY)} from {len(files)} files")


def page(files: Sequence[Path]) -> str:
    """The whole page, as Markdown."""
    found = {path.stem: Results.read(path) for path in files}
    known = [entry for entry in ENTRIES if entry.name in found or _exists(entry)]
    unknown = [_unknown(name, found[name]) for name in sorted(found.keys() - {it.name for it in known})]
    sections = [section(it, found[it.name]) for it in (*known, *unknown) if it.name in found]
    return "\n".join([HEAD, *sections, *gaps([it for it in known if it.name not in found])])


def section(entry: Entry, results: Results) -> str:
    """Heading, sentence, command, settings, picture and table of one file."""
    parts = [f"## {entry.title}", entry.says, _made(entry, results)]
    if any(row.has_interval for row in results.rows):
        parts.append(f"![{entry.title}: means and 95 % intervals of the table](results/{entry.name}.svg)")
    return "\n\n".join([*filter(None, parts), "\n".join(table(results.rows))]) + "\n"


def table(rows: Sequence[Row]) -> Iterator[str]:
    """The lines of a Markdown table, leads last; a column that no row has anything for is left out."""
    columns = {
        "task": [_task(row) for row in rows],
        "labels": [str(labels_of(row) or "") for row in rows],
        "model": [row.model for row in rows],
        "subset": [row.subset for row in rows],
        "metric": [row.metric for row in rows],
        "mean": [figure(row.mean) for row in rows],
        "95 % interval": [_interval(row) for row in rows],
        "patients": [str(row.num_patients) for row in rows],
        "seconds": [figure(row.seconds, digits=0) for row in rows],
    }
    for name in dict.fromkeys(name for row in rows for name in row.others):
        columns[name.replace("_", " ")] = [figure(row.others.get(name)) for row in rows]
    if len(set(columns["task"])) == 1:
        del columns["task"]
    shown = {head: cells for head, cells in columns.items() if set(cells) - {"", "-"}}
    yield _line(shown)
    yield "|" + "---|" * len(shown)
    lines = list(zip(*shown.values(), strict=True))
    yield from (_line(lines[place]) for place in sorted(range(len(rows)), key=lambda k: rows[k].is_lead))


def gaps(missing: Sequence[Entry]) -> Iterator[str]:
    """What has no file of results: quoted in docs all the same, or not measured."""
    quoted = [f"- {it.title}, quoted in {it.docs}: `{it.command}`" for it in missing if it.quoted]
    if quoted:
        yield "## Quoted in docs, result file not kept\n"
        yield "These were run before files of results were kept; no test holds their figures yet.\n"
        yield "\n".join(quoted) + "\n"
    if others := [f"- {it.title}: `{it.command}`" for it in missing if not it.quoted]:
        yield "## Not run at their size yet, or not kept\n"
        yield "There is no file of these, and docs quote no figure of theirs.\n"
        yield "\n".join(others) + "\n"


def figure(value: float | None, digits: int = 3) -> str:
    """A number as docs write it: .784, -.009, 23.10, 2,186; `-` where there is none."""
    if value is None:
        return "-"
    if isinstance(value, int) or digits == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 1:
        return f"{value:.2f}"
    return re.sub(r"^(-?)0\.", r"\1.", f"{value:.{digits}f}")


def _line(cells: Iterable[str]) -> str:
    words = (" ".join(cell.split()).replace("|", r"\|") for cell in cells)
    return f"| {' | '.join(words)} |"


def _task(row: Row) -> str:
    """What was asked, but for the number of labels, which has a column of its own."""
    return LABELS.sub("", row.task)


def _interval(row: Row) -> str:
    if row.mean is None:
        return row.reason or "-"
    return f"{figure(row.low)} to {figure(row.high)}" if row.has_interval else "-"


def _made(entry: Entry, results: Results) -> str:
    """The command and settings that a file tells of itself."""
    if not results.command:
        return f"The file is from before commands were recorded; {entry.docs} says how it was made."
    given = ", ".join(f"{name} {_said(value)}" for name, value in results.settings.items())
    settings = f" Settings: {given}." if given else ""
    return f"    {results.command}\n\nWillis {results.version}.{settings}"


def _said(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _exists(entry: Entry) -> bool:
    """Its benchmark is part of this repository."""
    folder = REPOSITORY / "benchmarks"
    module = entry.module or entry.name
    return (folder / f"{module}.py").is_file() or (folder / module / "__main__.py").is_file()


def _unknown(name: str, results: Results) -> Entry:
    """A file without an entry is headed by its name, and by what its benchmark says of itself."""
    module = re.search(r"benchmarks\.(\w+)", results.command)
    path = REPOSITORY / f"benchmarks/{module[1]}.py" if module else Path()
    says = (ast.get_docstring(ast.parse(path.read_text())) or "") if path.is_file() else ""
    return Entry(name, name.replace("_", " ").capitalize(), says.partition("\n\n")[0], docs="no page")


if __name__ == "__main__":
    main()
