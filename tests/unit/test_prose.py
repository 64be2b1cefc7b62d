"""What the server and its code say is plain: words and openings that make a sentence a riddle are not used.

Ruff's D rules hold the form of docstrings; these are the rules that a linter lacks.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
FILES = sorted((REPOSITORY / "app").rglob("*.py"))
RIDDLES = re.compile(
    r"\b(likewise|for ever|(?:no|some|any|every)body|(?:is|are) (?:said|away))\b|\A\s*(?-i:Of) ", re.IGNORECASE
)
NO_PROSE = {"nobody"}
"""The name of an account."""


def texts(file: Path) -> Iterator[tuple[int, str]]:
    """Docstrings, messages and all other texts of a module, by line."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in NO_PROSE:
            yield node.lineno, node.value


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_prose_is_plain(file: Path) -> None:
    riddles = [(line, match[0].strip()) for line, text in texts(file) if (match := RIDDLES.search(text))]
    assert riddles == []


@pytest.mark.parametrize(
    "text",
    ["Likewise, of rows.", "the database is away", "Of two readings the later", "nobody can tell", "kept for ever"],
)
def test_riddles_are_found(text: str) -> None:
    assert RIDDLES.search(text)
