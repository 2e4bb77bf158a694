"""The page of the Parquet columns, from their schemas."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pyarrow as pa

from fiqa_ray.datasets import results, schemas

COMMON = {  # columns of several schemas, or whose name says almost all
    "block": "number of a block of 64 similarities",
    "distance": "1 - cosine to the mean of the person's good images; null without such a mean",
    "embedding": "the recogniser's output",
    "epoch": "number of the epoch",
    "error": "the fault in words; of a packed face with status ok what libjpeg complained of, else null",
    "identity": "whose face it is",
    "identity_row": "number of the identity within its set, from 0",
    "image_id": "path within the data set, unique",
    "image_row": "number of the image within its set, from 0",
    "image_row_a": "first image of the pair",
    "image_row_b": "second image of the pair",
    "landmarks": "x, y of five points in pixels, or null",
    "mated": "whether both images show one person",
    "mean_similarity_rank": "mean rank of the pairs that the image owns, or null",
    "n_owned_pairs": "pairs that the image owns, over all repeats",
    "counts": "64 counts of pairs, one per similarity of the block",
    "optimized_index": "the index after equation 3",
    "prior_score": "the FIQA method's score",
    "quality_index": "rank of the prior score, 0 is the worst image",
    "repeat": "number of the repeat",
    "similarity_key": "similarity times 2^23",
    "status": "ok, or the kind of fault",
    "step": "number of training steps so far",
    "uri": "where the image is",
}


def columns_page() -> str:
    """Return the page: one table per schema, with the meanings that stand in the comments of the schemas' own file."""
    source = Path(schemas.__file__).read_text(encoding="utf-8")
    tree, lines = ast.parse(source), source.splitlines()
    text = f"# Columns\n\n{ast.get_docstring(tree)}\n"
    for node in tree.body:
        name = getattr(node, "name", "") or (ast.unparse(node.targets[0]) if isinstance(node, ast.Assign) else "")
        value: Any = getattr(schemas, name, None)
        schema = value(512 if name == "embeddings" else 4) if name in ("embeddings", "key_counts") else value
        if not isinstance(schema, pa.Schema):
            continue
        code = lines[node.lineno - 1 : node.end_lineno]
        meanings = COMMON | _meanings(code)
        comment = ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else _comment(code, lines, node.lineno)
        text += _section(name.lower(), comment or "", schema, meanings)
    for row_class in vars(results).values():
        if hasattr(row_class, "TABLE"):
            purpose, meanings = "", {}
            for declared in reversed(row_class.__mro__[:-1]):  # a class repeats no column of the one it extends
                purpose, _, attributes = inspect.cleandoc(declared.__doc__).partition("Attributes:")
                meanings |= dict(re.findall(r"^ +(\w+): (?:`\(L,\)` )?(.*)$", attributes, re.M))
            title = f"{row_class.TABLE} (results)"
            text += _section(title, purpose.strip(), results.schema_of(row_class), meanings)
    return text.replace("``", "`")


def _section(title: str, purpose: str, schema: pa.Schema, meanings: dict[str, str]) -> str:
    rows = "".join(f"| `{f.name}` | {f.type} | {meanings.get(f.name, '')} |\n" for f in schema)
    return f"\n## {title}\n\n{purpose}\n\n| column | type | meaning |\n| --- | --- | --- |\n{rows}"


def _meanings(code: list[str]) -> dict[str, str]:
    """Return the comment behind each column of a schema's source lines."""
    meanings, name = {}, ""
    for line in code:
        before, _, comment = line.partition("#")
        names = re.findall(r'"(\w+)"', before)
        name = names[0] if names else name
        if name and comment:
            meanings[name] = comment.strip()
    return meanings


def _comment(code: list[str], lines: list[str], number: int) -> str:
    """Return the comment on a schema's first line, or right above it."""
    inside = re.search(r"[(\[]\s*# (.*)$", code[0])
    above: list[str] = []
    while number >= 2 and lines[number - 2].startswith("#"):
        above.insert(0, lines[number - 2].lstrip("# "))
        number -= 1
    comment = inside[1] if inside else " ".join(above)
    return comment[:1].upper() + comment[1:]
