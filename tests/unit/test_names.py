"""Each class name has one meaning in app, and every word of the glossary is in use."""

import ast
import re
from collections import Counter

import pytest

from tests.support.modules import MODULES, ROOT

GLOSSARY = (ROOT / "docs" / "glossary.md").read_text()
WORDS = re.findall(r"^- \*\*(.+?)\*\*: ", GLOSSARY, re.MULTILINE)
TEXTS = [*(ROOT / "app").rglob("*.py"), ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
TEXT = "\n".join(path.read_text() for path in TEXTS if path.name != "glossary.md").lower()


def test_public_class_names_are_unique() -> None:
    """No two public classes of app share a name."""
    names = Counter(
        node.name
        for module in MODULES.values()
        for node in ast.walk(module)
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_glossary_is_short() -> None:
    """The glossary has at most 20 words, each once, in order, and nothing but words in its list."""
    assert 0 < len(WORDS) <= 20
    assert len(WORDS) == len(re.findall(r"^- ", GLOSSARY, re.MULTILINE))
    assert sorted(set(WORDS)) == WORDS


@pytest.mark.parametrize("word", WORDS)
def test_glossary_word_is_used(word: str) -> None:
    """The code or the documentation uses each word of the glossary."""
    assert re.search(rf"\b{re.escape(word)}(?:e?s)?\b", TEXT)
