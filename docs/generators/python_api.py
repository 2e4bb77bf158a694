"""The page of the Python functions, from their signatures and docstrings."""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from typing import Any

SECTIONS = {
    "Scores": ["fiqa_ray.score"],
    "Labels": [
        "fiqa_ray.optimize_labels",
        "fiqa_ray.choose_theta",
        "fiqa_ray.core.theta.ThetaCurve",
        "fiqa_ray.OptimizedLabels",
        "fiqa_ray.core.labels.optimize_from_pairs",
    ],
    "Curves": ["fiqa_ray.edc_curve", "fiqa_ray.core.edc.EDC"],
    "Results of a run": ["fiqa_ray.open_run", "fiqa_ray.Run"],
    "Models": ["fiqa_ray.load_recognizer", "fiqa_ray.load_scorer", "fiqa_ray.models.scorer.Scorer"],
    "Jobs": ["fiqa_ray.config.load_settings", "fiqa_ray.tools.run_job.run_job", "fiqa_ray.job.Job"],
}
INTRODUCTION = """# Python

The public functions load their heavy parts when they are first used: `import fiqa_ray` takes a fraction of a second.
In Python, `help(fiqa_ray.score)` shows the same text. The method in plain numpy, equation by equation, is the file
`fiqa_ray/core/paper.py`.
"""


def python_page() -> str:
    """Return the page: each function and class with its signature and docstring."""
    text = INTRODUCTION
    for title, names in SECTIONS.items():
        text += f"\n## {title}\n" + "".join(_entry(name) for name in names)
    return text


def _entry(name: str) -> str:
    """Return the section of a function or class; of a class also its public methods and properties."""
    module, _, attribute = name.rpartition(".")
    value = getattr(importlib.import_module(module), attribute)
    text = f"\n### `{name}`\n\n{_block(value)}"
    for member, held in vars(value).items() if inspect.isclass(value) else ():
        function = held.fget if isinstance(held, property) else getattr(held, "__func__", held)
        if not member.startswith("_") and inspect.isfunction(function) and function.__doc__:
            text += f"\n#### `{attribute}.{member}`\n\n{_block(function)}"
    return text


def _block(value: Any) -> str:
    """Return signature and docstring as a block of code; the signature as its source has it."""
    documentation = inspect.getdoc(value) or ""
    if inspect.isclass(value):
        return f"```text\n{documentation}\n```\n"
    node: Any = ast.parse(textwrap.dedent(inspect.getsource(value))).body[0]
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"{node.name}({ast.unparse(node.args)}){result}"
    if len(line) > 100:
        arguments = ast.unparse(node.args)
        parts = [ast.unparse(a) for a in _single(node.args)]
        line = f"{node.name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){result}" if arguments else line
    return f"```text\n{line}\n\n{documentation}\n```\n"


def _single(arguments: ast.arguments) -> list[ast.arguments]:
    """Return each argument alone, with its default, and the star before arguments that need their names."""

    def one(**parts: Any) -> ast.arguments:
        empty: dict[str, Any] = {"posonlyargs": [], "args": [], "kwonlyargs": [], "kw_defaults": [], "defaults": []}
        return ast.arguments(**(empty | parts))

    plain = arguments.posonlyargs + arguments.args
    defaults = [None] * (len(plain) - len(arguments.defaults)) + list(arguments.defaults)
    alone = [one(args=[a], defaults=[d] if d else []) for a, d in zip(plain, defaults, strict=True)]
    if arguments.vararg:
        alone.append(one(vararg=arguments.vararg))
    elif arguments.kwonlyargs:
        alone.append(one(vararg=ast.arg("")))
    named = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    alone += [one(args=[a], defaults=[d] if d else []) for a, d in named]
    return alone + ([one(kwarg=arguments.kwarg)] if arguments.kwarg else [])
