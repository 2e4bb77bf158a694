"""Writes the pages that come from the code and from recorded benchmarks: `python docs/generators/write_pages.py`.

The pages are in the repository, so that they can be read without a build; a test compares them with the code.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import columns
import python_api
import records
import reference_pages

DOCS = Path(__file__).parents[1]
NOTE = "<!-- Written by docs/generators/write_pages.py: change the code that it reads, and run it again. -->\n\n"


def pages() -> dict[Path, str]:
    """Return the text of each generated page by its file."""
    texts = {f"reference/{name}.md": page() for name, page in reference_pages.PAGES.items()}
    texts |= {
        "reference/columns.md": columns.columns_page(),
        "reference/python.md": python_api.python_page(),
        "recorded.md": records.records_page(),
    }
    lines = {name: "\n".join(line.rstrip() for line in text.strip().splitlines()) for name, text in texts.items()}
    return {DOCS / name: f"{NOTE}{text}\n" for name, text in lines.items()}


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
