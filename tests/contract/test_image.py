"""The image of the pipeline's tasks, as far as its Containerfile can be read without being built."""

import re
from pathlib import Path

import pytest

from components.image import IMAGE
from willis import __version__

Instructions = list[tuple[str, str]]


@pytest.fixture(scope="module")
def instructions(repository: Path) -> Instructions:
    """(word, rest) of each instruction, continued lines joined."""
    text = (repository / "infra" / "images" / "Containerfile").read_text()
    lines = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines if line)]


def _all(instructions: Instructions, word: str) -> list[str]:
    return [rest for name, rest in instructions if name == word]


def test_its_name_and_its_version_are_those_that_the_components_ask_for(repository: Path) -> None:
    build = f"podman build --file infra/images/Containerfile --tag {IMAGE} ."
    assert IMAGE.endswith(f":{__version__}")
    for place in ("infra/images/Containerfile", "docs/operate.md"):
        assert build in (repository / place).read_text()


def test_every_word_is_an_instruction_and_the_base_comes_first(instructions: Instructions) -> None:
    words = [word for word, _ in instructions]
    assert set(words) <= {"FROM", "RUN", "WORKDIR", "COPY", "ARG", "ENV", "USER"}
    assert instructions[0] == ("FROM", "docker.io/library/python:3.11-slim")
    assert words.count("FROM") == 1


def test_whatever_it_copies_exists(instructions: Instructions, repository: Path) -> None:
    sources = [source for rest in _all(instructions, "COPY") for source in rest.split()[:-1]]
    assert [source for source in sources if not (repository / source).exists()] == []
    folders = {source for source in sources if (repository / source).is_dir()}
    assert folders == {"willis", "components", "pipelines", "serving", "feature_repo"}


def test_it_installs_the_pinned_environment_and_resolves_nothing(
    instructions: Instructions, repository: Path
) -> None:
    commands = [command.strip() for rest in _all(instructions, "RUN") for command in rest.split("&&")]
    installs = [command for command in commands if command.startswith("pip install")]
    pinned = (repository / "constraints.txt").read_text().splitlines()
    torch = next(line for line in pinned if line.startswith("torch=="))
    assert [command.split()[-1] for command in installs] == [torch, "constraints.txt", "."]
    assert all("--no-deps" in command for command in installs[1:])


def test_it_runs_from_its_folder_as_nobody_special(instructions: Instructions) -> None:
    assert _all(instructions, "WORKDIR") == ["/app"]
    assert "PYTHONPATH=/app" in " ".join(_all(instructions, "ENV")).split()
    assert instructions[-1] == ("USER", "10001")
