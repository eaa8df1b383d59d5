"""Which pairs does the index of a Debian release give? What each package is for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from corpus.pairs import Pair

# Their descriptions quote abstracts that SciFact holds too, which encoders are measured on.
QUOTING = {"igblast", "igv", "macs", "rna-star"}
FIELD = re.compile(r"^([\w-]+): ?(.*(?:\n .*)*)", re.MULTILINE)


def debian(archives: Sequence[Path]) -> Iterator[Pair]:
    """Yield one line and the long description of a package of each source, grouped by section.

    The archives are the release's Packages and its English descriptions.
    """
    packages, translations = archives
    described = {entry["Package"]: entry["Description-en"] for entry in stanzas(translations)}
    done = set()
    for entry in stanzas(packages):
        name = entry["Package"]
        source = entry.get("Source", name).partition(" ")[0]
        title, _, text = described.get(name, "").partition("\n")
        # Shorter texts only name the package; a source's other packages repeat its text.
        if len(text) >= 40 and source not in done and name not in QUOTING:
            done.add(source)
            yield Pair(title, re.sub(r"^ \.?", "", text, flags=re.MULTILINE), entry["Section"])


def stanzas(path: Path) -> Iterator[dict[str, str]]:
    """Yield the fields of each stanza of a Debian control file."""
    for stanza in path.read_text("utf-8").split("\n\n"):
        if stanza.strip():
            yield dict(FIELD.findall(stanza))
