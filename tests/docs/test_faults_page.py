"""docs/faults.md names, for every fault, a test that exists."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "faults.md"
ROW = re.compile(r"^\| (?!case |---)", re.MULTILINE)


def named_tests(row):
    """Return the tests of a row as (file, name); a file left out is that of the test before."""
    found, file = [], ""
    for text in re.findall(r"`([\w/]*(?:\.py)?)::(\w+)`", row):
        file = text[0] or file
        found.append((file, text[1]))
    return found


def test_every_fault_has_a_test_that_exists():
    rows = [line for line in PAGE.read_text().splitlines() if ROW.match(line)]
    missing = [row for row in rows if not named_tests(row)]
    for row in rows:
        for file, name in named_tests(row):
            path = TESTS / file
            tree = ast.parse(path.read_text()) if path.is_file() else ast.parse("")
            if name not in {one.name for one in tree.body if isinstance(one, ast.FunctionDef)}:
                missing.append(f"{file}::{name}")
    assert len(rows) > 80
    assert not missing
