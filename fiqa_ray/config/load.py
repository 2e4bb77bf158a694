"""How settings are read from YAML and `key=value`; all mistakes are reported at once."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from fiqa_ray.config.job import Settings
from fiqa_ray.errors import UsageError
from fiqa_ray.safe_yaml import override, parse_yaml
from fiqa_ray.storage import read_bytes


def load_settings(job_uri: str, overrides: list[str] | tuple[str, ...] = (), *, with_training: bool = True) -> Settings:
    """Read a job's settings from YAML and apply overrides.

    Args:
        job_uri: the YAML file: a path or any fsspec URL.
        overrides: `key=value` texts with dotted keys and YAML values, such as `optimize.theta=0.01`.
        with_training: whether training faces and methods are needed.

    Raises:
        UsageError: lists every mistake with its key and value and, for an unknown key, the nearest valid one.
    """
    return make_settings(settings_values(job_uri, overrides), Path(job_uri).name, with_training=with_training)


def settings_values(job_uri: str, overrides: list[str] | tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the values of a job's YAML with overrides, as nested dicts; nothing but their form is checked.

    Raises:
        UsageError: The file or an override is no settings.
    """
    text = read_bytes(job_uri).decode("utf-8", errors="replace")
    values = parse_yaml(text, job_uri)
    if not isinstance(values, dict):
        raise UsageError(f"{job_uri} must hold settings as 'key: value' lines, found {type(values).__name__}")
    for assignment in overrides:
        override(values, assignment)
    return values


def make_settings(values: dict[str, Any], origin: str = "settings", *, with_training: bool = True) -> Settings:
    """Return the settings that a nested dict holds.

    Args:
        values: as YAML gives them.
        origin: name of the file, for error messages.
        with_training: whether training faces and methods are needed.

    Raises:
        UsageError: as `load_settings`.
    """
    lines = [f"{key}: is missing" for key in ("source", "methods") if with_training and not values.get(key)]
    try:
        settings = Settings.model_validate(values)
        if not lines:
            return settings
    except ValidationError as exc:
        errors = exc.errors()
        # a list whose members are wrong is called too short as well
        told_elsewhere = {error["loc"][:n] for error in errors for n in range(len(error["loc"]))}
        # a key that is there by a wrong name is called missing as well
        told_elsewhere |= {
            (*error["loc"][:-1], near)
            for error in errors
            if error["type"] == "extra_forbidden"
            for near in _near(error)
        }
        lines += [_explain(error) for error in errors if error["loc"] not in told_elsewhere]
    raise UsageError(f"{origin}: {len(lines)} wrong setting(s)\n" + "\n".join(f"  {line}" for line in lines))


def _explain(error: Any) -> str:
    """Return one line on one of pydantic's errors: the key, what is wrong, and the value or a hint."""
    path = [p for p in error["loc"] if not str(p).startswith("function-") and p != "number"]  # of unions
    key = ".".join(str(p) for p in path)
    if error["type"] == "extra_forbidden":
        near = _near(error)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(_keys_at(path[:-1]))}"
        return f"{key}: unknown key ({hint})"
    if error["type"] == "missing":
        return f"{key}: is missing"
    value = error.get("input")
    if error["type"] in ("tuple_type", "list_type"):
        example = f"[{{name: {value}}}]" if key in ("methods", "benchmarks") else f"[{value}]"
        return f"{key}: give a list, such as {key}={example} (found {value!r})"
    if error["type"] in ("model_type", "model_attributes_type"):
        known = ", ".join(_keys_at(path))
        return f"{key}: give keys and values, of {known} (found {value!r})"
    shown = f" (found {value!r})" if not isinstance(value, dict | list) else ""
    return f"{f'{key}: ' if key else ''}{error['msg'].removeprefix('Value error, ')}{shown}"


def _near(error: Any) -> list[str]:
    """Return the key that an unknown key is nearest to, if one is near."""
    return difflib.get_close_matches(str(error["loc"][-1]), _keys_at(list(error["loc"][:-1])), n=1, cutoff=0.5)


def _keys_at(path: list[Any]) -> list[str]:
    """Return the valid keys of the section at a path of keys and list indices."""
    model: Any = Settings
    for step in path:
        if isinstance(step, int):
            continue
        annotation = model.model_fields[step].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(model.model_fields)
