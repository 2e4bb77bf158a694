"""What all sections of settings share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Section(BaseModel):
    """A section of settings: frozen, and without keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false where a number is wanted: pydantic takes them as 1 and 0."""
        values = value if isinstance(value, list | tuple) else [value]
        if info.field_name and any(isinstance(v, bool) for v in values):
            types = _types_in(cls.model_fields[info.field_name].annotation)
            if not {bool, Any} & types and {int, float} & types:
                raise ValueError(f"{str(value).lower()} is no number")
        return value


def _types_in(annotation: Any) -> set[Any]:
    """Return the types that an annotation is made of."""
    arguments = get_args(annotation)
    return {t for a in arguments for t in _types_in(a)} if arguments else {annotation}


def repeated(names: Iterable[str]) -> list[str]:
    """Return the names that occur more than once, sorted."""
    return sorted(name for name, n in Counter(names).items() if n > 1)
