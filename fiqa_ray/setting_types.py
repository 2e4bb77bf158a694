"""Types of single settings: names, shares, and URIs and options that are stored without secrets."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PlainSerializer

from fiqa_ray.public_uri import public_uri, public_values

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
"""A name that can be part of a path."""

Fraction = Annotated[float, Field(ge=0, le=1)]
"""A number from 0 to 1."""


Uri = Annotated[str, Field(min_length=1), PlainSerializer(public_uri, return_type=str, when_used="json")]
"""A path or URL. The value in memory may hold secrets; what is stored and hashed (`model_dump(mode="json")`) holds none."""

Options = Annotated[dict[str, Any], PlainSerializer(public_values, return_type=dict[str, Any], when_used="json")]
"""Keyword arguments of a model; URIs among them are stored without secrets."""
