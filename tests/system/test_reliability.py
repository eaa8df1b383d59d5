"""Is each promise of docs/reliability.md beside a test that exists, and does its code run?"""

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/reliability.md").read_text()
FILES = sorted(set(re.findall(r"`((?:tests|benchmarks)/[\w/]+\.py)", PAGE)))
TESTS = sorted(set(re.findall(r"\b(test_\w+)`", PAGE)))
DEFINED = {
    name
    for file in (ROOT / "tests").rglob("test_*.py")
    for name in re.findall(r"^(?:    )?def (test_\w+)", file.read_text(), re.MULTILINE)
}


@pytest.mark.parametrize("name", FILES)
def test_the_files_that_the_page_names_are_there(name: str) -> None:
    assert (ROOT / name).is_file()


@pytest.mark.parametrize("name", [name for name in TESTS if not name.endswith("_py")])
def test_the_tests_that_the_page_names_are_there(name: str) -> None:
    assert name in DEFINED


def test_every_promise_has_a_test() -> None:
    rows = re.findall(r"^\| (.+?) \| (.+?) \|", PAGE, re.MULTILINE)
    promises = [row for row in rows if row[0] not in ("promise", "---") and len(row) == 2]
    assert len(promises) > 10
    for promise, test in promises:
        assert "tests/" in test or "test_" in test or "first of these" in test, promise


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
def test_the_code_of_the_page_runs(code: str) -> None:
    body, last = code.rstrip().rsplit("\n", 1)
    call, wanted = last.split("   # ")
    names: dict[str, Any] = {}
    exec(body, names)
    assert eval(call, names) == eval(wanted)
