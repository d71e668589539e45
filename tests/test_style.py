"""Words that do not appear in code, configurations and documents."""

import re

import pytest

from tests.conftest import ROOT

_WORDS = (
    "anew",
    "lest",
    "nobody",
    "whoever",
    "whom",
    "likewise",
    "wherefore",
    "what came",
    "what stands",
    "by word order",
    "let go of",
    "put together",
)
_AVOIDED = re.compile(rf"\b({'|'.join(_WORDS)})\b", re.IGNORECASE)
_AVOIDED_EXACTLY = re.compile(r"\bOURS\b")
_RIDDLE = re.compile(r'^\s*r?"""(?:What|Whether|How|Where) ', re.MULTILINE)
"""Docstrings name a thing: they do not begin with a question word."""
_SUFFIXES = {".py", ".md", ".yaml", ".j2", ".css"}
_FILES = [
    ROOT / "README.md",
    *(
        path
        for folder in ("deocc", "tests", "bench", "configs", "docs/pages")
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in _SUFFIXES and path.name != "test_style.py"
    ),
]


@pytest.mark.parametrize("text", ["It begins Anew.", "our choice (OURS)", "a file, put together"])
def test_avoided_words_are_recognised(text: str) -> None:
    assert _find(text)


def test_other_words_are_allowed() -> None:
    assert not _find("The rows are sorted by word; ours is the slowest and renews")


def test_no_avoided_words() -> None:
    found = {str(path.relative_to(ROOT)): _find(path.read_text(encoding="utf-8")) for path in _FILES}
    assert {name: words for name, words in found.items() if words} == {}


def _find(text: str) -> list[str]:
    joined = " ".join(text.split())  # expressions may span lines
    return _AVOIDED.findall(joined) + _AVOIDED_EXACTLY.findall(joined)


def test_docstring_sections_have_lines_of_their_own() -> None:
    merged = re.compile(r"^\s+(Args|Attributes|Raises|Returns): \S", re.MULTILINE)
    assert [path.name for path in _FILES if path.suffix == ".py" and merged.search(path.read_text("utf-8"))] == []


def test_legends_have_a_place() -> None:
    """Without one, matplotlib searches for it, and warns on a slow machine."""
    searching = re.compile(r"\.legend\((?![^)]*loc=)")
    texts = {
        path.name: path.read_text("utf-8") for folder in ("deocc", "bench") for path in (ROOT / folder).rglob("*.py")
    }
    assert [name for name, text in texts.items() if searching.search(text)] == []


def test_docstrings_begin_with_no_question_word() -> None:
    assert _RIDDLE.search('def f():\n    """Whether it is so."""') and not _RIDDLE.search('"""Return how many."""')
    files = [path for path in _FILES if path.suffix == ".py"]
    assert [str(path.relative_to(ROOT)) for path in files if _RIDDLE.search(path.read_text(encoding="utf-8"))] == []
