"""What is data and what is not: one rule for all sources and commands.

Systems leave files beside images: thumbnails, resource forks, checkpoints of editors, folders of failed writes. Read as
data they would be a person's pictures twice, or a further person. A file that the user names is taken at its word;
the rule is for what a folder, a glob or an archive holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
"""Endings, in any case, of the files that count as images."""

_HELPERS = {
    "@eadir",
    "@recycle",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "__macosx",
    "desktop.ini",
    "ehthumbs.db",
    "lost+found",
    "system volume information",
    "thumbs.db",
}


def reason_left_out(name: str, endings: Sequence[str]) -> str | None:
    """Return why a file is no data, or None if it is.

    Args:
        name: path below the folder or within the archive, with forward slashes.
        endings: lower-case endings that count, such as `EXTENSIONS`.
    """
    parts = name.split("/")
    for part in parts:
        if part.lower() in _HELPERS:
            return f"below {part}" if part is not parts[-1] else part
        if part.startswith("._"):
            return "AppleDouble ._*"
        if part.startswith((".", "_")):
            return f"name begins with {part[0]}"
    if name.lower().endswith(tuple(endings)):
        return None
    stem, dot, ending = parts[-1].rpartition(".")
    return f"ending .{ending.lower()}" if dot and stem and len(ending) <= 10 else "no ending"


def keep_data(names: Iterable[str], endings: Sequence[str], left_out: Counter[str] | None = None) -> list[str]:
    """Return the names that are data, in order; the others are counted in `left_out` by reason."""
    data = []
    for name in names:
        reason = reason_left_out(name, endings)
        if reason is None:
            data.append(name)
        elif left_out is not None:
            left_out[reason] += 1
    return data


def count_text(left_out: Counter[str], limit: int = 20) -> str:
    """Return the counts as text, the largest first, such as `ending .gif 3, AppleDouble ._* 2`."""
    most = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(n for _, n in most[limit:])
    return ", ".join([*(f"{reason} {n:,}" for reason, n in most[:limit]), *([f"others {rest:,}"] if rest else [])])
