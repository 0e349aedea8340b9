"""What every section of params.yaml has in common, and how one is checked.

An unknown key is refused with the nearest known one; a value out of range is refused with the rule and its
place in the file.
"""

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from willis.errors import ParamsError


def _whole(value: object) -> object:
    """KFP passes dict parameters as JSON, so a whole number may arrive as 2.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A section of params.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


S = TypeVar("S", bound=Section)


def by_method(default: float, **others: float) -> Callable[[dict[str, Any]], float]:
    """Make a default that follows the section's `method`, which stands above it.

    Args:
        default: for a method that is not named.
        others: method -> what its paper has.
    """
    return lambda values: others.get(values.get("method", ""), default)


def parse_section(section: type[S], values: dict[str, Any], place: str) -> S:
    """Check one section's values.

    Args:
        section: the model of the section.
        values: what the file or the pipeline gave.
        place: where the values came from, for the message.

    Raises:
        ParamsError: with value, rule, place and, for an unknown key, the nearest known one.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise ParamsError(
            "; ".join(_explain(section, dict(item), place) for item in error.errors())
        ) from None


def _explain(section: type[BaseModel], item: dict[str, Any], place: str) -> str:
    from difflib import get_close_matches

    path = [str(part) for part in item["loc"]]
    where = f"{place}: {'.'.join(path)}"
    if item["type"] != "extra_forbidden":
        return f"{'.'.join(path)} is {item['input']!r}; {item['msg']} ({where})"
    near = get_close_matches(path[-1], _keys_at(section, path[:-1]), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{path[-1]!r} is not a known key{hint} ({where})"


def _keys_at(section: type[BaseModel], path: list[str]) -> list[str]:
    for name in path:
        field = section.model_fields.get(name)
        if field is None or not (
            isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        ):
            break
        section = field.annotation
    return list(section.model_fields)
