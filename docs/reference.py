"""Write docs/params.md and docs/settings.md from the models themselves: `python -m docs.reference`."""

import types
import typing
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from willis.params import Params
from willis.settings import Settings

DOCS = Path(__file__).parent


def params_page() -> str:
    """Every key of params.yaml: type, default, rule, meaning."""
    lines = ["# Parameters", "", "Made by `make docs` from `willis/params.py`; the file is params.yaml.", ""]
    for name, field in Params.model_fields.items():
        section = field.annotation
        assert isinstance(section, type)
        lines += [f"## {name}", "", (section.__doc__ or "").strip().splitlines()[0], ""]
        lines += _table(section)
    return "\n".join(lines).rstrip() + "\n"


def settings_page() -> str:
    """Every environment variable."""
    lines = [
        "# Settings",
        "",
        "Made by `make docs` from `willis/settings.py`; read from the environment.",
        "",
    ]
    lines += ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        lines.append(f"| `WILLIS_{name.upper()}` | {_default(field)} | {field.description} |")
    return "\n".join(lines) + "\n"


def _table(section: type[BaseModel]) -> list[str]:
    lines = ["| key | type | default | rule | meaning |", "|---|---|---|---|---|"]
    for name, field in section.model_fields.items():
        rule = ", ".join(word for item in field.metadata for word in _rule(item)) or "-"
        lines.append(
            f"| `{name}` | {_type(field)} | {_default(field)} | {rule} | {field.description or ''} |"
        )
    return [*lines, ""]


def _rule(item: object) -> list[str]:
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = [f"{sign} {getattr(item, name)}" for name, sign in signs.items() if hasattr(item, name)]
    pattern = getattr(item, "pattern", None)
    return bounds + ([f"matches `{pattern}`"] if pattern else [])


def _type(field: FieldInfo) -> str:
    return _named(field.annotation)


def _named(kind: object) -> str:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _named(inner[0])
    if origin is typing.Literal:
        return " or ".join(f"`{item}`" for item in inner)
    if origin is tuple:
        return f"list of {_named(inner[0])}" if inner[-1] is ... else f"{len(inner)} x {_named(inner[0])}"
    if origin is dict:
        return f"mapping of {_named(inner[0])} to {_named(inner[1])}"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_named(item) for item in inner)
    words = {int: "whole", float: "number", bool: "true or false", str: "text", type(None): "none"}
    return words.get(kind, getattr(kind, "__name__", str(kind)))  # type: ignore[call-overload, no-any-return]


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, BaseModel):
        return "see below"
    return f"`{value}`" if value not in (None, "", ()) else "-"


if __name__ == "__main__":
    (DOCS / "params.md").write_text(params_page())
    (DOCS / "settings.md").write_text(settings_page())
