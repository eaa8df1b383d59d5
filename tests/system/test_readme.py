"""What the README says is true: its commands are two, its example runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_readme_has_exactly_two_set_up_commands():
    commands = blocks("sh")

    assert len(commands) == 2
    assert all(len(command.strip().splitlines()) == 1 for command in commands)
    assert commands[0].strip().endswith("vecstore demo")
    assert commands[1].strip().endswith("pytest -n 2")


def test_the_readme_example_has_about_twenty_lines_and_runs(tmp_path):
    (example,) = blocks("python")

    assert len(example.strip().splitlines()) <= 22
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", example],
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0].startswith("lmdb ")
    assert lines[2] == "[2]"
    assert lines[3].startswith("1 {")
    assert lines[3].endswith("} []")


def test_every_page_that_the_readme_links_exists():
    links = re.findall(r"\]\(([^)#]+)\)", README)

    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
