"""The runner of documents: it must see every way in which a document and the world can differ."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.story import Command, FileBlock, difference, follow, run_on_a_terminal, steps_of

DOCUMENT = """
```json file=a.json
{"a": 1}
```

Some words, and a block that is not run:

```python
raise SystemExit
```

```console
$ cat a.json
{"a": 1}
$ echo one; echo two >&2
one
two
```
"""


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "story.md"
    path.write_text(DOCUMENT, "utf-8")
    return path


def test_files_and_commands_are_found_in_order(document: Path) -> None:
    assert list(steps_of(document)) == [
        FileBlock("a.json", '{"a": 1}\n', 2),
        Command("cat a.json", 13, ['{"a": 1}']),
        Command("echo one; echo two >&2", 15, ["one", "two"]),
    ]


def test_a_document_is_followed(document: Path, tmp_path: Path) -> None:
    waits: list[int] = []
    assert follow(document, tmp_path, {"PATH": "/usr/bin:/bin"}, instead={}, settle=lambda: waits.append(1)) == 2
    assert len(waits) == 2


def test_other_output_is_told_with_its_line(document: Path, tmp_path: Path) -> None:
    document.write_text(DOCUMENT.replace('"a": 1}\n$', '"a": 2}\n$'), "utf-8")
    with pytest.raises(AssertionError, match=r"story.md:13: \$ cat a.json\nexpected: \{\"a\": 2\}"):
        follow(document, tmp_path, {"PATH": "/usr/bin:/bin"}, instead={}, settle=lambda: None)


def test_a_command_sees_a_terminal(tmp_path: Path) -> None:
    assert run_on_a_terminal("test -t 1 && echo yes", tmp_path, {"PATH": "/usr/bin:/bin"}) == ["yes"]


@pytest.mark.parametrize(
    ("expected", "printed"),
    [
        (["a"], ["a", ""]),
        (["a … c"], ["a b b c"]),
        (["  a   b", "───"], [" a b", "──────"]),
        (["…", "z"], ["a", "b", "z"]),
        (["a", "…"], ["a", "b", "c"]),
        ([], []),
    ],
    ids=["blank end", "within a line", "widths", "lines before", "lines after", "nothing"],
)
def test_the_same(expected: list[str], printed: list[str]) -> None:
    assert difference(expected, printed) is None


@pytest.mark.parametrize(
    ("expected", "printed"),
    [
        (["a"], []),
        ([], ["a"]),
        (["a"], ["b"]),
        (["a.c"], ["abc"]),
        (["…", "z"], ["a", "b"]),
        (["a … c"], ["a b"]),
        (["a"], ["a", "b"]),
    ],
    ids=["missing", "surplus", "other", "a dot is a dot", "never comes", "cut", "more"],
)
def test_not_the_same(expected: list[str], printed: list[str]) -> None:
    assert difference(expected, printed) is not None


def test_a_command_that_goes_on_is_interrupted_once_it_has_printed_what_is_shown(tmp_path: Path) -> None:
    document = tmp_path / "story.md"
    document.write_text("```console\n$ echo here; exec sleep 1000\nhere\n^C\n```\n", "utf-8")
    assert follow(document, tmp_path, {"PATH": "/usr/bin:/bin"}, instead={}, settle=lambda: None) == 1
