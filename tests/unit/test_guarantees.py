"""The page docs/guarantees.md agrees with the modules that cite it and the tests that it names."""

import ast
import re
from pathlib import Path

import pytest

from tests.support.modules import ROOT

PAGE = (ROOT / "docs" / "guarantees.md").read_text()
HEADING = re.compile(r"^## (\d+)\. ", re.MULTILINE)
CITATION = re.compile(r"\.\s+\((\d+)\)")


def sections() -> dict[int, str]:
    """Return the text below each numbered heading."""
    _, *parts = HEADING.split(PAGE)
    return {int(number): text for number, text in zip(parts[::2], parts[1::2], strict=True)}


def citations(path: Path) -> set[int]:
    """Return the numbers cited in the docstrings of a file, of its classes' attributes too."""
    tree = ast.parse(path.read_text())
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)]
    return {
        int(number)
        for text in texts
        if isinstance(text, ast.Constant) and isinstance(text.value, str)
        for number in CITATION.findall(text.value)
    }


def cited_by() -> dict[int, set[str]]:
    """Return the modules that cite each number."""
    found: dict[int, set[str]] = {}
    for path in (ROOT / "app").rglob("*.py"):
        for number in citations(path):
            found.setdefault(number, set()).add(str(path.relative_to(ROOT)))
    return found


def names(path: Path) -> set[str]:
    """Return what a test file defines at its top level that pytest can collect."""
    body = ast.parse(path.read_text()).body
    defined = {node.name for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    assigned = {
        target.id
        for node in body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return {name for name in defined | assigned if name.lower().startswith("test")}


def test_numbers_are_unique_and_in_order() -> None:
    """Each promise has a number of its own, in ascending order."""
    numbers = [int(number) for number in HEADING.findall(PAGE)]
    assert numbers == sorted(set(numbers))


def test_page_and_modules_agree() -> None:
    """The page names exactly the numbers that app cites, with exactly the modules that cite them."""
    assert {number: set(re.findall(r"`(app/\S+\.py)`", text)) for number, text in sections().items()} == cited_by()


@pytest.mark.parametrize("number", sections())
def test_named_tests_exist(number: int) -> None:
    """Each promise is held by at least one test, and the tests that it names exist."""
    lines = re.findall(r"^- test: (.*)$", sections()[number], re.MULTILINE)
    assert lines
    for line in lines:
        named = re.fullmatch(r"`(tests/\S+\.py)::(\w+)`", line)
        assert named, line
        assert named[2] in names(ROOT / named[1]), line
