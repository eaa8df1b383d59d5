"""Fixtures that every test may use. A database ends its test sound, or the test fails."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import vecstore
from vecstore import Database

Python = Callable[..., str]

# Databases are opened inside examples: a first one may be slow, and none depends on another.
_COMMON = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}
settings.register_profile("fast", max_examples=25, **_COMMON)
settings.register_profile("ci", max_examples=100, derandomize=True, **_COMMON)
settings.register_profile("long", max_examples=2000, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "test.vecstore"


@pytest.fixture
def db(path: Path) -> Iterator[Database]:
    """A database in a file; checked at the end, also where the test closed it."""
    database = vecstore.open(path)
    yield database
    if database.closed:
        database = vecstore.open(path)
    assert database.check() == []
    database.close()


@pytest.fixture
def memory() -> Iterator[Database]:
    """A database in memory."""
    database = vecstore.open(":memory:")
    yield database
    if not database.closed:
        assert database.check() == []
    database.close()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240229)


@pytest.fixture
def run_python() -> Python:
    """Run a program in a process of its own and return what it printed; it must exit with 0."""

    def run(program: str, *arguments: object, status: int = 0) -> str:
        command = [sys.executable, "-W", "error", "-c", textwrap.dedent(program)]
        result = subprocess.run(
            [*command, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == status, result.stdout + result.stderr
        return result.stdout

    return run
