"""Coverage-guided fuzzing of whatever reads bytes of others; needs `pip install atheris`.

    python benchmarks/fuzz.py TARGET CORPUS -max_total_time=300

TARGET is one of those below, CORPUS a folder that keeps inputs which led somewhere new; further
arguments are libFuzzer's. Only errors of vecstore may come of an input. What else does is written
to `crash-...`, and belongs into `tests/test_fuzzed.py`, once it is mended.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

with atheris.instrument_imports(include=["vecstore"]):
    import fuzzed


def main() -> None:
    name, *rest = sys.argv[1:]
    target = fuzzed.TARGETS[name]
    corpus = next((part for part in rest if not part.startswith("-")), None)
    if corpus is not None:
        folder = Path(corpus)
        folder.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(fuzzed.SEEDS.get(name, ())):
            (folder / f"seed-{number}").write_bytes(seed)
    arguments = [sys.argv[0], *rest, "-timeout=20", "-rss_limit_mb=3000", "-max_len=4096"]
    atheris.Setup(arguments, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
