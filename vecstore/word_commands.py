"""What can a shell do with word vectors? `vecstore words`: convert a file, find similar words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vecstore import formats, terminal
from vecstore.database import open as opened
from vecstore.hits import one_line
from vecstore.spec import PRECISIONS

if TYPE_CHECKING:
    from vecstore.words.conversion import Subwords
    from vecstore.words.files import Kind

# As in `vecstore.words`, which is imported by the command that needs it.
KINDS = ("text", "word2vec", "fasttext")
SUBWORDS = ("all", "used", "none")

_database = click.argument("database", type=click.Path(dir_okay=False))
_name = click.option(
    "--collection", "-c", "name", default="words", show_default=True, metavar="NAME"
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


@click.group()
def words() -> None:
    """Word vectors: word2vec, GloVe, fastText."""


@words.command()
@click.argument("file", type=click.Path(dir_okay=False))
@_database
@_name
@click.option("--kind", type=click.Choice(KINDS), help="By default told by the contents.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many words.")
@click.option("--lower", is_flag=True, help="Store the words in lower case.")
@click.option("--precision", type=click.Choice(PRECISIONS), help="How vectors are stored.")
@click.option(
    "--subwords",
    type=click.Choice(SUBWORDS),
    default="all",
    show_default=True,
    help="Which n-gram vectors of a fastText model.",
)
@_json
def convert(file: str, database: str, as_json: bool, **options: Any) -> None:
    """Store a file of word vectors as a collection.

    FILE is word2vec's (text or binary), GloVe's or fastText's (.vec or .bin), gzipped or not.
    """
    from vecstore import words as vectors

    kind: Kind | None = options.pop("kind")
    subwords: Subwords = options.pop("subwords")
    done = vectors.convert(file, database, kind=kind, subwords=subwords, **options)
    if as_json:
        click.echo(formats.dumps(done.to_dict(), indent=2))
        return
    ngrams = f" and {done.ngrams:,} n-grams" if done.ngrams else ""
    what = f"{done.words:,} words{ngrams} of {done.dim} numbers stored in {done.name!r}"
    click.echo(one_line(f"{what} of {database}"))
    for reason, count in done.skipped.items():
        click.echo(f"{count:,} words left out: {reason}", err=True)


@words.command()
@_database
@click.argument("word", nargs=-1, required=True)
@click.option("--not", "negative", multiple=True, metavar="WORD", help="Less this word.")
@click.option("-k", default=10, show_default=True, type=click.IntRange(min=1), help="How many.")
@_name
@_json
def similar(
    database: str,
    word: tuple[str, ...],
    negative: tuple[str, ...],
    k: int,
    name: str,
    as_json: bool,
) -> None:
    """Find the words nearest to a word, or to a sum of words.

    `similar DATABASE king woman --not man` asks what is to woman as king is to man.
    """
    from vecstore import words as vectors

    with opened(database, read_only=True) as db:
        hits = vectors.WordVectors(db, name).most_similar(word, negative, k)
    if as_json:
        answer = {"complete": hits.complete, "hits": hits.to_dicts()}
        click.echo(formats.dumps(answer, indent=2))
        return
    out = terminal.console()
    rows = [(f"{hit.score:.3f}", hit.id) for hit in hits]
    out.print(terminal.table(("score", "word"), rows, out.width))
