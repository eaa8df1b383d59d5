"""Which pairs do ontologies and registries of science give? Names and definitions."""

from __future__ import annotations

import io
import json
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from corpus.packages import only_file
from corpus.pairs import Pair

CITATION = re.compile(r"\s*[\[(](?:PMID|GOC|ISBN|DOI|doi|WB|FBrf|url|http)[^\])]*[\])]")
MARKDOWN_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
# A tag of Bioregistry for text that its curators copied, which is not theirs to give away.
COPIED = "[from homepage]"


def definitions(ontology: str) -> Callable[[Sequence[Path]], Iterator[Pair]]:
    """Return a reader of an ontology's names and definitions, grouped by the nearest ancestor.

    Terms that the ontology only borrows from others are left out.
    """

    def read(archives: Sequence[Path]) -> Iterator[Pair]:
        terms = newest(archives[0], ontology)
        for identifier, term in terms.items():
            text = term.get("description")
            if text and not term.get("deprecated") and identifier.startswith(f"{ontology}:"):
                group = f"{ontology}: {_parent(term, terms)}"
                yield Pair(term["label"], CITATION.sub("", text), group)

    return read


def newest(archive: Path, ontology: str) -> dict[str, dict[str, Any]]:
    """Return the terms of the newest release in the package, by identifier."""
    import zstandard

    folder = "cellxgene_ontology_guide/data"
    about = json.loads(only_file(archive, f"{folder}/latest_ontology_info.json"))
    version = about["ontologies"][ontology]["version"]
    packed = only_file(archive, f"{folder}/{ontology}-ontology-{version}.json.zst")
    with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(packed)) as text:
        terms: dict[str, dict[str, Any]] = json.load(text)
    return terms


def _parent(term: dict[str, Any], terms: dict[str, dict[str, Any]]) -> str:
    distances: dict[str, int] = term.get("ancestors") or {}
    nearest = min(distances, key=lambda key: (distances[key], key), default="")
    return str(terms.get(nearest, {}).get("label", ""))


def gene_ontology(archives: Sequence[Path]) -> Iterator[Pair]:
    """Yield terms and definitions, grouped by branch and the term's last word."""
    database = sqlite3.connect(":memory:")
    database.deserialize(only_file(archives[0], "*/GO.sqlite"))
    for term, branch, text in database.execute("SELECT term, ontology, definition FROM go_term"):
        if text and not text.startswith("OBSOLETE"):
            yield Pair(term, CITATION.sub("", text), f"GO {branch}: {term.split()[-1]}")


def databases(archives: Sequence[Path]) -> Iterator[Pair]:
    """Yield names and descriptions of scientific databases and ontologies."""
    entries = json.loads(only_file(archives[0], "bioregistry/data/bioregistry.json"))
    for entry in entries.values():
        text = entry.get("description", COPIED)
        if "name" in entry and COPIED not in text:
            yield Pair(entry["name"], text, "database or ontology")


def health_records(archives: Sequence[Path]) -> Iterator[Pair]:
    """Yield short and full definitions of the parts of health records."""
    bundle = json.loads(only_file(archives[0], "package/dist/fhir/r4/profiles-resources.json"))
    for resource in (entry["resource"] for entry in bundle["entry"]):
        for element in resource.get("snapshot", {}).get("element", []):
            short = element.get("short", "")
            if len(short.split()) > 1 and "|" not in short:
                keys = ("definition", "comment", "requirements")
                text = " ".join(element.get(key, "") for key in keys)
                yield Pair(short, MARKDOWN_LINK.sub(r"\1", text), f"FHIR {resource['name']}")
