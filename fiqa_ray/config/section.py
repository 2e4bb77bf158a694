"""What all sections of settings share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A section of settings: frozen, and without keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def repeated(names: Iterable[str]) -> list[str]:
    """Return the names that occur more than once, sorted."""
    return sorted(name for name, n in Counter(names).items() if n > 1)
