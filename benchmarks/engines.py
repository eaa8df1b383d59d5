"""Which engines are there? Their names, and how they are chosen."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from databases import DATABASES
from engine import Engine
from libraries import LIBRARIES

ENGINES: dict[str, type[Engine]] = {kind.name: kind for kind in (*LIBRARIES, *DATABASES)}


def choose(names: Sequence[str]) -> list[type[Engine]]:
    """The installed engines whose names begin with one of these, whatever their case.

    "libraries", "databases" and "all" mean what they say.
    """
    groups = {"libraries": LIBRARIES, "databases": DATABASES, "all": list(ENGINES.values())}
    chosen: dict[str, type[Engine]] = {}
    for name in names:
        found = groups.get(name) or [
            kind for kind in ENGINES.values() if kind.name.lower().startswith(name.lower())
        ]
        if not found:
            raise SystemExit(f"there is no engine {name!r}; there are {', '.join(ENGINES)}")
        chosen |= {kind.name: kind for kind in found}
    return [kind for kind in chosen.values() if importlib.util.find_spec(kind.package)]
