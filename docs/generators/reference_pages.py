"""Reference pages from the code: the command line from typer, the settings from pydantic, the models from their tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import typer
from typer.cli import get_docs_for_click

from fiqa_ray import cli
from fiqa_ray.config import Settings
from fiqa_ray.models.method_table import METHODS
from fiqa_ray.models.recognizer_table import RECOGNIZERS, NetworkRow


def cli_page() -> str:
    """Return the page of the command line: every command with its arguments and options, as typer documents them."""
    command: Any = typer.main.get_command(cli.app)
    context: Any = command.context_class(command, info_name="fiqa-ray")
    text = get_docs_for_click(obj=command, ctx=context, name="fiqa-ray", title="Command line")
    for name, inner in command.commands.items():  # typer cuts the first sentence short in its list
        text = re.sub(rf"^\* `{name}`: .*\.\.\.$", f"* `{name}`: {inner.help.splitlines()[0]}", text, flags=re.M)
    return re.sub(r"\[((?:default|required|env var|x[<>]).*?)\]", r"(\1)", text)  # brackets would read as links


def settings_page() -> str:
    """Return the page of the YAML keys: one table per section, with type, default and meaning of every key."""
    sections = Settings.model_json_schema()["$defs"]
    text = "# Settings\n\nA job is a YAML file. Any key can be changed on the command line: `fiqa-ray run JOB.yaml "
    text += "optimize.theta=0.1`.\nNumbers in brackets are limits. A key without default must be given.\n"
    text += "Refused is what versions of YAML read differently: `010`, `1_000`, `1:30`, `yes`, dates without quotes.\n"
    for name, (places, keys) in _sections(Settings.model_json_schema(), sections).items():
        title = ", ".join(f"`{place}`" for place in places) if name else "Top level"
        text += f"\n## {title}\n\n{_first_paragraph(sections[name]) if name else ''}\n\n"
        text += _table(["key", "type", "default", "meaning"], keys)
    return text


def _sections(root: dict[str, Any], sections: dict[str, Any]) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Return, per section, the keys that lead to it and the rows of its table; the top level has the name ''."""
    pages: dict[str, tuple[list[str], list[list[str]]]] = {}
    waiting = [("", "", root)]
    while waiting:
        name, path, schema = waiting.pop(0)
        if name in pages:
            pages[name][0].append(path)
            continue
        rows = []
        for key, value in schema["properties"].items():
            inner = re.search(r"'\$ref': '#/\$defs/(\w+)'", str(value))
            if inner:
                place = f"{path}.{key}".lstrip(".") + ("[]" if value.get("type") == "array" else "")
                waiting.append((inner[1], place, sections[inner[1]]))
            default = _default(value) if key not in schema.get("required", ()) else ""
            rows.append([f"`{key}`", _type(value), default, value.get("description", "")])
        pages[name] = ([path], rows)
    return pages


def _first_paragraph(schema: dict[str, Any]) -> str:
    return schema.get("description", "").split("\n\n")[0].replace("\n", " ")


def _type(schema: dict[str, Any]) -> str:
    """Return the type of a key in words, with its limits."""
    if "$ref" in schema or schema.get("type") == "object":
        return "section" if "$ref" in schema else "keys and values"
    choices = schema.get("anyOf", schema.get("oneOf"))
    if choices:
        return " or ".join(dict.fromkeys(_type(s) for s in choices if s.get("type") != "null"))
    if "enum" in schema or "const" in schema:
        return " or ".join(f"`{v}`" for v in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        items = schema.get("items") or schema["prefixItems"][0]  # the latter: lists of fixed length
        return f"list: {_type(items)}"
    words = {"integer": "whole number", "string": "text", "boolean": "`true` or `false`"}
    bounds = [("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="), ("exclusiveMaximum", "<")]
    limits = ", ".join(f"{sign} {schema[key]:g}" for key, sign in bounds if key in schema and schema[key] < 2**62)
    return words.get(schema["type"], schema["type"]) + (f" [{limits}]" if limits else "")


def _default(schema: dict[str, Any]) -> str:
    """Return a default as YAML writes it; sections have those of their own keys."""
    value = schema.get("default")
    if value in (None, [], {}, ""):
        return "none"
    if isinstance(value, dict):
        return "see below"
    if isinstance(value, list):
        return f"`{', '.join(map(str, value))}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def models_page() -> str:
    """Return the page of the recognisers and FIQA methods that have a name, from the tables of the package."""
    text = "# Models and methods\n\nWeights are not part of the package: get the released file under its licence, by hand\n"
    text += "or, where the table says so, by `fiqa-ray models fetch NAME`, which shows the licence and asks first.\n"
    text += "Input pixels are scaled as (v - mean) / scale, v from 0 to 255. A larger score means better quality.\n"
    rows = []
    for name, row in RECOGNIZERS.items():
        pixels = f"{row.preprocessing.colour} (v - {row.preprocessing.mean:g}) / {row.preprocessing.scale:g}"
        network = f"{row.macs / 1e9:.2f} GMAC per face<br>{row.dim} dimensions<br>{pixels}"
        rows.append([f"`{name}`", network, _origin(_file(row), row)])
    columns = ["name", "network and input", "released file, authors' code, licence"]
    text += "\n## Recognisers\n\nValues of `recognizer.name` and of `--recognizer`.\n\n" + _table(columns, rows)
    rows = []
    for name, method in METHODS.items():
        own = method.network or method.head
        random = "" if method.deterministic else "<br>draws random numbers"
        scores = f"{method.cost} per face<br>range: {method.range_text}; usual: {method.usual_range}"
        scores += f"<br>better: {method.direction}{random}"
        rows.append([f"`{name}`", scores, _origin(_file(own) if own else "", method)])
    columns = ["name", "cost and usual scores", "released file, authors' code, licence"]
    text += (
        "\n## FIQA methods\n\nValues of `methods[].name` and of `--model`. F and B are forward and backward passes of "
    )
    text += "the recogniser. A method without released file works on the job's recogniser.\n\n"
    return text + _table(columns, rows)


def _file(row: NetworkRow) -> str:
    return f"{row.released_file} (`fetch`)" if row.fetch_uri else row.released_file


def _origin(released_file: str, row: Any) -> str:
    return "<br>".join(part for part in (released_file, row.source, row.licence) if part)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


PAGES: dict[str, Callable[[], str]] = {
    "cli": cli_page,
    "settings": settings_page,
    "models": models_page,
}
