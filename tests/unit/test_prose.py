"""The English of the server, its code and its pages is plain.

Ruff's D rules hold the form of docstrings. These are the rules that a linter lacks.
"""

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SOURCES = sorted(
    path for folder in ("app", "alembic", "benchmarks", "grafana") for path in (REPOSITORY / folder).rglob("*.py")
)
TESTS = sorted((REPOSITORY / "tests").rglob("*.py"))
PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"), REPOSITORY / "benchmarks" / "README.md"])

RIDDLES = re.compile(
    r"\b(likewise|for ever|(?:no|some|any|every)body|(?:is|are) (?:said|away))\b|\A\s*(?-i:Of) ", re.IGNORECASE
)
NO_PROSE = {"nobody"}
"""The name of an account."""
BARE_OPENING = re.compile(r"(What|Who|Whoever|How|Which|And|Or|But|Also)\b")
MAX_HEAD_WORDS = 25
MAX_SENTENCE_WORDS = 35
CODE = re.compile(r"^( *)```.*?^\1```$|^    [^\n]*$|`[^`]*`", re.MULTILINE | re.DOTALL)
MEASURED = "<!-- Below this line stands the output"
"""In benchmarks/README.md: a program has written what follows."""


def each(paths: list[Path]) -> pytest.MarkDecorator:
    """Run a test once for each file."""
    return pytest.mark.parametrize("file", paths, ids=lambda file: str(file.relative_to(REPOSITORY)))


def texts(file: Path) -> Iterator[tuple[int, str]]:
    """Yield the docstrings, messages and all other texts of a module, by line."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in NO_PROSE:
            yield node.lineno, node.value


def docstrings_and_comments(file: Path) -> Iterator[str]:
    """Yield the docstrings of a module, of its attributes too, and each line of its comments."""
    with file.open("rb") as lines:
        yield from (token.string[1:] for token in tokenize.tokenize(lines.readline) if token.type == tokenize.COMMENT)
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.Expr(ast.Constant(str(text))):
                yield text


def heads(file: Path) -> Iterator[str]:
    """Yield the first sentences of a module's docstrings."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield re.split(r"(?<=[.!?:])\s|\n\n", ast.get_docstring(node) or "", maxsplit=1)[0]


def sentences(page: str) -> Iterator[str]:
    """Yield the sentences of a page in Markdown, without its code. A cell of a table has its own sentences."""
    prose = CODE.sub(lambda code: "\n" if code[0].startswith((" ", "```")) else "X", page)
    for paragraph in re.split(r"\n\s*\n|\n(?= *(?:- |\d+\. |\|))|\n(?=#)| \| ", prose):
        yield from re.split(r"(?<=[.!?])[)*]*\s+(?=[^a-z])", paragraph.strip(" \n|"))


@each(SOURCES)
def test_prose_is_plain(file: Path) -> None:
    """No text of a module has a word or an opening that makes it a riddle."""
    assert [(line, match[0].strip()) for line, text in texts(file) if (match := RIDDLES.search(text))] == []


@each(SOURCES + TESTS)
def test_docstrings_and_comments_are_plain(file: Path) -> None:
    """No docstring or comment has a word or an opening that makes it a riddle."""
    assert [text for text in docstrings_and_comments(file) if RIDDLES.search(text)] == []


@each(SOURCES + TESTS)
def test_head_is_short(file: Path) -> None:
    """A docstring's first sentence has a named subject or a verb, no semicolon, and at most 25 words."""
    found = list(heads(file))
    assert [head for head in found if BARE_OPENING.match(head)] == []
    assert [head for head in found if ";" in head or len(head.split()) > MAX_HEAD_WORDS] == []


@each(PAGES)
def test_page_is_plain(file: Path) -> None:
    """No sentence of a page is a riddle, or has more than 35 words."""
    page = file.read_text().partition(MEASURED)[0]
    assert [text for text in sentences(page) if RIDDLES.search(text) or len(text.split()) > MAX_SENTENCE_WORDS] == []


@pytest.mark.parametrize(
    "text",
    ["Likewise, of rows.", "the database is away", "Of two readings the later", "nobody can tell", "kept for ever"],
)
def test_riddles_are_found(text: str) -> None:
    """The words and openings that are not plain are recognised."""
    assert RIDDLES.search(text)


def test_sentences_are_told_apart() -> None:
    """A page's sentences are found in paragraphs, lists and tables, and not in code."""
    page = "# A\n\nOne `a. B` two. `C` three:\n\n- four\n  five\n- six\n\n| a | b. D |\n\n```sh\nls. Ls\n```\n\n    x\n"
    found = [text for text in sentences(page) if text]
    assert found == ["# A", "One X two.", "X three:", "- four\n  five", "- six", "a", "b.", "D"]
