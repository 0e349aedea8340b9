"""What the page of results says is what benchmarks measured, and README and docs quote nothing else."""

import argparse
import json
import re
import shlex
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks import results
from benchmarks.entries import ENTRIES
from benchmarks.page import PAGE, REPOSITORY, RESULTS, page
from benchmarks.results import Results, Row, figure_rows, write_results
from benchmarks.results_plots import digest_of, draw

FILES = sorted(RESULTS.glob("*.json"))
QUOTING = [
    REPOSITORY / "README.md",
    *(path for path in sorted((REPOSITORY / "docs").glob("*.md")) if path != PAGE),
]
AUC = {
    "task": "poor_outcome", "model": "willis", "subset": "all", "metric": "auc", "num_patients": 500,
    "mean": 0.78373, "low": 0.7419, "high": 0.82425, "seconds": 2185.9,
}  # fmt: skip
# .784, or .784 [.742, .824], or the two cells | .784 | .742 to .824 |
NUMBER = r"(-?(?:\.\d{3}|1\.000))(?!\d)"
QUOTED = re.compile(rf"(?<![\d.]){NUMBER}(?:(?:\s\[|\s\|\s){NUMBER}(?:,\s|\sto\s){NUMBER})?")
MARK = re.compile(r"\A<!-- results: (.*?) -->\n", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A paragraph or table of a page, with the rows that the comment before it names."""

    place: str
    text: str
    named: tuple[str, ...]

    @property
    def quoted(self) -> list[tuple[str, ...]]:
        """Each figure with its interval, if it has one."""
        return [tuple(part for part in found if part) for found in QUOTED.findall(self.text)]


def blocks_of(name: str, text: str) -> Iterator[Block]:
    for paragraph in text.split("\n\n"):
        mark = MARK.search(paragraph)
        named = [" ".join(words.split()) for words in mark[1].split(";")] if mark else []
        body = MARK.sub("", paragraph)
        yield Block(f"{name}: {body.strip()[:40]}", body, tuple(filter(None, named)))


BLOCKS = [block for path in QUOTING for block in blocks_of(path.name, path.read_text())]
MARKED = [block for block in BLOCKS if block.named]


def named_row(name: str) -> Row:
    """The one row that `file | model | metric`, with task or subset where it takes them, points to."""
    file, *words = name.split(" | ")
    rows = Results.read(RESULTS / f"{file}.json").rows
    found = [row for row in rows if set(words) <= {row.task, row.model, row.subset, row.metric}]
    assert len(found) == 1, f"{name} names {len(found)} rows of docs/results/{file}.json, not one"
    return found[0]


def as_docs_write_it(value: float) -> str:
    sign, digits = "-" if value < 0 else "", f"{abs(value):.3f}"
    return sign + digits.removeprefix("0")


def write(folder: Path, rows: list[dict[str, object]]) -> Path:
    path = folder / "made.json"
    write_results(path, rows)
    return path


def test_the_page_is_what_its_command_writes() -> None:
    assert PAGE.read_text() == page(FILES), "python -m benchmarks.page renews it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_picture_was_drawn_from_the_file_beside_it_as_it_stands(path: Path) -> None:
    picture = path.with_suffix(".svg")
    assert picture.exists() == any(row.has_interval for row in Results.read(path).rows)
    assert not picture.exists() or digest_of(path) in picture.read_text(), (
        "python -m benchmarks.page renews it"
    )


def test_no_picture_lies_beside_the_page_without_its_file() -> None:
    assert {path.stem for path in RESULTS.glob("*.svg")} <= {path.stem for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_of_results_names_no_place_of_one_machine(path: Path) -> None:
    words = shlex.split(Results.read(path).command)
    assert not [word for word in words if Path(word).is_absolute() or word.startswith("~")]


@pytest.mark.parametrize("block", MARKED, ids=lambda block: block.place)
def test_a_figure_that_is_marked_is_the_one_that_was_measured(block: Block) -> None:
    rows = [named_row(name) for name in block.named]
    assert len(block.quoted) == len(rows), f"{len(rows)} rows are named, the figures are {block.quoted}"
    for figures, row in zip(block.quoted, rows, strict=True):
        measured = [as_docs_write_it(it) for it in (row.mean, row.low, row.high) if it is not None]
        assert list(figures) == measured[: len(figures)], f"{row.model}, {row.metric}"


def test_a_figure_with_an_interval_is_marked_wherever_it_is_quoted() -> None:
    kept = {path.stem for path in FILES}
    not_kept = {entry.docs for entry in ENTRIES if entry.quoted and entry.name not in kept}
    unmarked = [
        block.place
        for block in BLOCKS
        if any(len(figures) == 3 for figures in block.quoted)
        and not block.named
        and f"docs/{block.place.partition(':')[0]}" not in not_kept
    ]
    assert not unmarked, "put <!-- results: file | model | metric; ... --> before each"


def test_figures_are_found_in_sentences_and_tables_with_and_without_an_interval() -> None:
    text = (
        "<!-- results: a | b | auc;\nc | d | auc -->\n"
        "reaches .784 [.742,\n.824], not 0.784\n| x | -.010 | -.03 | .805 | .766 to .844 |"
        "\n.998 [.986, 1.000]"
    )
    (block,) = blocks_of("page", text)
    assert block.named == ("a | b | auc", "c | d | auc")
    assert block.quoted == [
        (".784", ".742", ".824"),
        ("-.010",),
        (".805", ".766", ".844"),
        (".998", ".986", "1.000"),
    ]


def test_rows_read_back_are_those_written_with_command_settings_and_version(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(
        results.sys, "orig_argv", ["python3.11", "-u", "-m", "benchmarks.nihss", "--repeats", "2"]
    )
    rows = [*figure_rows("speed", "willis", {"ms": 3}, 16), {**AUC, "num_steps": 4, "assumed": {"gpus": 8}}]
    given = argparse.Namespace(json=tmp_path / "a.json", repeats=2, epochs=None, seeds=[0, 1])
    write_results(given.json, rows, given)
    read = Results.read(given.json)
    assert read.command == "python -m benchmarks.nihss --repeats 2"
    assert read.settings == {"repeats": 2, "seeds": [0, 1]}
    assert read.version
    assert read.rows[0] == Row("speed", "willis", "", "ms", 3.0, 16)
    assert read.rows[1] == Row(**AUC, others={"num_steps": 4})


def test_a_file_that_nobody_foresaw_gets_a_section_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "dropped_in.json"
    path.write_text(json.dumps([AUC]))
    said = page([path])
    assert "## Dropped in\n" in said
    assert "| willis | all | auc | .784 | .742 to .824 | 500 | 2,186 |" in said


def test_the_page_says_which_benchmarks_have_no_result() -> None:
    said = page([])
    for entry in (entry for entry in ENTRIES if entry.name in ("ceiling_interacting", "reports")):
        assert f"{entry.command}`" in said
    assert (
        "python -m benchmarks.ceiling --preset interacting --json docs/results/ceiling_interacting.json"
        in said
    )


def test_rows_without_a_figure_say_why(tmp_path: Path) -> None:
    nothing = AUC | {"mean": None, "low": None, "high": None, "reason": "does not install"}
    assert "| - | does not install |" in page([write(tmp_path, [AUC, nothing])])


def test_tasks_that_end_in_a_number_of_labels_are_drawn_along_it_and_others_row_by_row(
    tmp_path: Path,
) -> None:
    curve = [AUC | {"task": f"poor_outcome_{labels}_labels"} for labels in (50, 100)]
    drawn = draw(path := write(tmp_path, curve), Results.read(path).rows)
    assert "labelled patients" in texts_of(drawn)
    assert "| 50 | willis |" in page([path])
    drawn = draw(path := write(tmp_path, [AUC, AUC | {"model": "boosting"}]), Results.read(path).rows)
    assert {"willis", "boosting"} <= texts_of(drawn)


def test_a_picture_is_the_same_bytes_when_it_is_drawn_again(tmp_path: Path) -> None:
    path = write(tmp_path, [AUC, AUC | {"model": "willis over boosting", "metric": "auc_lead"}])
    first = draw(path, Results.read(path).rows).read_bytes()
    assert draw(path, Results.read(path).rows).read_bytes() == first


def texts_of(picture: Path) -> set[str]:
    return {node.text for node in ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}text")}
