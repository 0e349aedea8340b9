"""The rules of the house that no linter knows."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

MAX_FUNCTION_LINES, MAX_FILE_LINES, MAX_COMPONENT_STATEMENTS = 60, 400, 12
FORBIDDEN_NAMES = {"utils", "helpers", "manager", "common", "misc", "base"}
OUTER = ("willis", "components", "pipelines", "serving", "infra", "feature_repo", "benchmarks")
REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for folder in OUTER for path in (REPOSITORY / folder).rglob("*.py"))


def _functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.parse(path.read_text())
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_the_import_rules_hold(repository: Path) -> None:
    found = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports"))],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout[-3000:]


def test_no_function_is_longer_than_sixty_lines() -> None:
    long = {
        f"{path.relative_to(REPOSITORY)}:{function.name}": function.end_lineno - function.lineno + 1
        for path in SOURCES
        for function in _functions(path)
        if function.end_lineno is not None and function.end_lineno - function.lineno >= MAX_FUNCTION_LINES
    }
    assert not long


def test_no_file_is_longer_than_four_hundred_lines() -> None:
    long = {
        str(path.relative_to(REPOSITORY)): n for path in SOURCES if (n := _num_lines(path)) > MAX_FILE_LINES
    }
    assert not long


def _num_lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_no_module_is_named_after_nothing() -> None:
    assert not [path for path in SOURCES if path.stem in FORBIDDEN_NAMES]


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "components").glob("*.py")), ids=lambda path: str(path.stem)
)
def test_a_component_is_thin(path: Path) -> None:
    for function in _functions(path):
        assert len(function.body) <= MAX_COMPONENT_STATEMENTS


def test_only_the_settings_read_the_environment_in_the_library() -> None:
    readers = {
        str(path.relative_to(REPOSITORY))
        for path in SOURCES
        if path.is_relative_to(REPOSITORY / "willis") and _reads_environment(path)
    }
    assert readers <= {"willis/settings.py"}


def _reads_environment(path: Path) -> bool:
    """Reading a WILLIS_ variable; setting a third party's switch is not reading."""
    return any(
        isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("WILLIS_")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call | ast.Subscript) and "os.environ" in ast.unparse(call)
        for node in ast.walk(call)
    )


def test_the_wheel_holds_the_library_alone_and_imports_alone(repository: Path, tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(tmp_path), str(repository)], check=True, capture_output=True)
    wheel = next(tmp_path.glob("willis-*.whl"))
    import zipfile

    names = set(zipfile.ZipFile(wheel).namelist())
    assert {top for name in names if not (top := name.split("/")[0]).endswith(".dist-info")} == {"willis"}
    needed = [path for kind in ("*.py", "*.j2") for path in (repository / "willis").rglob(kind)]
    assert not {str(path.relative_to(repository)) for path in needed} - names
    check = (
        f"import sys; sys.path.insert(0, {str(wheel)!r}); import willis.cli, willis; print(willis.__file__)"
    )
    found = subprocess.run(
        [sys.executable, "-c", check], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert str(wheel) in found.stdout
