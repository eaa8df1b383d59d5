"""The example of docs/words.md runs, and its answers are right."""

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs/words.md").read_text()


def test_the_example_runs(tmp_path):
    (example,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)

    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", example],
        cwd=tmp_path,
        env={**os.environ},
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == "7 {}"
    assert lines[1].startswith("True [")
    assert lines[1].endswith("(2, 4)")
    assert lines[2:] == ["['dog']", "['queen']", "king", "['pets']"]
