"""What is a recipe told on the command line?"""

from __future__ import annotations

import argparse
from pathlib import Path


def read_arguments(title: str | None, out: str) -> argparse.Namespace:
    """Return corpus, base, out and scratch.

    Args:
        title: What the recipe makes.
        out: The model's name.
    """
    parser = argparse.ArgumentParser(description=(title or "").partition("\n")[0])
    parser.add_argument(
        "--corpus", type=Path, required=True, help="folder that make_corpus.py makes"
    )
    parser.add_argument("--base", type=Path, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / out)
    parser.add_argument("--scratch", type=Path, help="where some gigabytes may be kept meanwhile")
    return parser.parse_args()
