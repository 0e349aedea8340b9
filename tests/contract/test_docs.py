"""What docs and README say is true of the code."""

import re
import shlex
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
COMMAND = re.compile(r"^ {4}((?:willis|make) .+)$", re.MULTILINE)
COMMANDS = sorted({(page.name, line) for page in PAGES for line in COMMAND.findall(page.read_text())})


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
    words = shlex.split(line.split("  ")[0].partition("#")[0].replace("\\", ""))
    if words[0] == "make":
        assert f"\n{words[1]}:" in (REPOSITORY / "Makefile").read_text()
        return
    _parse(typer.main.get_command(app), words[1:])


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
