"""Which commit the running code is of."""

import subprocess
from pathlib import Path

import willis


def code_revision() -> tuple[str | None, bool]:
    """The commit of the running code and whether its checkout differs from it; (None, False) without git."""
    root = Path(willis.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None, False
    try:
        revision = _git(root, "rev-parse", "HEAD")
        return revision, bool(_git(root, "status", "--porcelain"))
    except (OSError, subprocess.SubprocessError):
        return None, False


def _git(root: Path, *words: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(root), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
