"""What docs and README say is true of the code."""

import argparse
import importlib
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import click
import pytest
import typer

from docs.reference import params_page, settings_page
from willis.cli import app
from willis.params import Params
from willis.settings import Settings

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
BENCHMARKS = [
    path for kind in ("[!_]*.py", "*/__main__.py") for path in sorted((REPOSITORY / "benchmarks").glob(kind))
]
SOURCES = [*PAGES, REPOSITORY / "CONTRIBUTING.md", *BENCHMARKS]
# On a line of their own, or between backquotes in a sentence.
LINE = re.compile(r"^ {4}((?:willis|make|python -m) .+)$", re.MULTILINE)
QUOTED = re.compile(r"`((?:make|python -m) [^`\n]+)`")
COMMANDS = sorted(
    {
        (page.name, line)
        for page in SOURCES
        for how in (LINE, QUOTED)
        for line in how.findall(page.read_text())
    }
)


class _ParsedError(Exception):
    """The arguments were accepted; raised in place of doing what they ask for."""


def test_the_parameter_page_is_what_make_docs_writes() -> None:
    assert (REPOSITORY / "docs/params.md").read_text() == params_page()


def test_the_settings_page_is_what_make_docs_writes() -> None:
    assert (REPOSITORY / "docs/settings.md").read_text() == settings_page()


def test_every_parameter_says_what_it_means() -> None:
    silent = [
        f"{name}.{key}"
        for name, field in Params.model_fields.items()
        for key, item in field.annotation.model_fields.items()  # type: ignore[union-attr]
        if not item.description
    ]
    assert not silent


def test_every_setting_says_what_it_means() -> None:
    assert not [name for name, field in Settings.model_fields.items() if not field.description]


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=lambda value: value[:60])
def test_a_command_in_the_docs_parses_as_written(page: str, line: str) -> None:
    words = shlex.split(re.sub(r"[][\\]", "", line.split("  ")[0].partition("#")[0]))
    if words[0] == "make":
        _find_targets(words[1:])
    elif words[0] == "python":
        _parse_module(words[2], words[3:])
    else:
        _parse(typer.main.get_command(app), words[1:])


def test_a_command_with_a_wrong_target_module_or_option_is_found() -> None:
    with pytest.raises(AssertionError, match="no target dmeo"):
        _find_targets(["dmeo", "DATA=soop:PATH"])
    with pytest.raises(AssertionError, match="no module"):
        _parse_module("pipelines.trainnig", [])
    with pytest.raises(SystemExit):
        _parse_module("pipelines.training", ["--out", "x.yaml", "--cpus", "1"])


@pytest.mark.parametrize("pipeline", ["training", "monitoring"])
def test_the_pipelines_compile_by_their_documented_commands(pipeline: str, tmp_path: Path) -> None:
    module = f"pipelines.{pipeline}"
    lines = {line for _, line in COMMANDS if line.startswith(f"python -m {module} ")}
    assert lines
    for number, line in enumerate(sorted(lines)):
        words = shlex.split(line)[3:]
        words[words.index("--out") + 1] = str(tmp_path / f"{number}.yaml")
        done = subprocess.run(
            [sys.executable, "-m", module, *words],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert "pipelineInfo" in (tmp_path / f"{number}.yaml").read_text()


def _find_targets(words: list[str]) -> None:
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    for word in words:
        assert "=" in word or word == "|" or word in targets, f"the Makefile has no target {word}"


def _parse_module(name: str, words: list[str]) -> None:
    """Let the module's own parser read the words, and stop before it acts on them."""

    def parse_and_stop(parser: argparse.ArgumentParser, *_: object) -> argparse.Namespace:
        unknown = parser.parse_known_args(words)[1]
        if unknown:
            parser.error(f"unrecognised: {unknown}")
        raise _ParsedError

    found = find_spec(name)
    assert found is not None, f"there is no module {name}"
    name += ".__main__" if found.submodule_search_locations else ""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(_ParsedError):
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        importlib.import_module(name).main()


def _parse(command: click.Command, words: list[str]) -> None:
    context = command.make_context(
        command.name, list(words), resilient_parsing=isinstance(command, click.Group)
    )
    if isinstance(command, click.Group):
        name, inner, rest = command.resolve_command(context, words)
        assert inner is not None, f"{name} is no command"
        _parse(inner, rest)


def test_every_page_that_the_readme_names_exists() -> None:
    named = set(re.findall(r"docs/[a-z-]+\.md", (REPOSITORY / "README.md").read_text()))
    assert {name for name in named if not (REPOSITORY / name).is_file()} == set()


def test_the_readme_has_150_to_200_lines_and_says_research_only_on_its_first_screen() -> None:
    lines = (REPOSITORY / "README.md").read_text().splitlines()
    assert 150 <= len(lines) <= 200
    assert "not for diagnosis" in "\n".join(lines[:15])
