"""What does `vecstore eval` take, and what does it print?

Its own file, since `cli.py` is long; what measures is `vecstore.evaluation`, imported when asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vecstore import formats, terminal
from vecstore.errors import UsageError
from vecstore.spec import PRECISIONS

if TYPE_CHECKING:
    from vecstore.evaluation import Fields, Pairs, Report, Retrieval, Sweep

# "auto" is what it decides to be, and nothing by itself.
MEASURED_KINDS = ("flat", "hash", "ivf")


def _numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...]:
    try:
        return () if value is None else tuple(int(size) for size in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not N,N,...", ctx, param) from None


def _codes(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[tuple[int, int], ...]:
    try:
        pairs = [] if value is None else [pair.split("x") for pair in value.split(",")]
        return tuple((int(dims), int(bits)) for dims, bits in pairs)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not DIMSxBITS,..., as 128x1", ctx, param) from None


def _words(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    return () if value is None else tuple(word.strip() for word in value.split(","))


def _three(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, str, str]:
    names = value.split(",")
    if len(names) != 3:
        raise click.BadParameter(f"{value!r} is not FIRST,SECOND,SCORE", ctx, param)
    return names[0], names[1], names[2]


_file = click.Path(exists=True, dir_okay=False)
_positive = click.IntRange(min=1)


@click.command("eval")
@click.option("--docs", type=_file, help="Documents, jsonl: id, text, and title if there is one.")
@click.option("--queries", type=_file, help="Queries, jsonl: text, and rel or id.")
@click.option("--qrels", type=_file, help="Relevance, if not in rel: jsonl, TREC's or BEIR's form.")
@click.option("--pairs", type=_file, help="Scored pairs of texts, jsonl: s1, s2, score.")
@click.option("--split", "splits", multiple=True, help="Only queries and pairs of it; repeatable.")
@click.option("--pairs-split", "pair_splits", multiple=True, help="The same of pairs alone.")
@click.option("--encoder", metavar="FOLDER|NAME", help="A model; by default the bundled one.")
@click.option("--against", metavar="FOLDER|NAME", help="A second one, measured side by side.")
@click.option("--dims", callback=_numbers, metavar="N,...", help="By default those declared.")
@click.option(
    "--precision",
    "precisions",
    default="float32",
    show_default=True,
    callback=_words,
    metavar="NAME,...",
    help=f"Some of {', '.join(PRECISIONS)}.",
)
@click.option("--tiers", callback=_numbers, metavar="N,...", help="Prefixes that find a shortlist.")
@click.option("--shortlist", type=_positive, default=100, show_default=True)
@click.option(
    "--bits", "codes", callback=_codes, metavar="DIMSxBITS,...", help="Short codes of an index."
)
@click.option(
    "--index", "indexes", callback=_words, metavar="KIND,...", help=", ".join(MEASURED_KINDS)
)
@click.option("-k", type=_positive, default=10, show_default=True, help="Hits that count.")
@click.option("--sample", type=_positive, help="At most so many documents, queries and pairs.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--vectors", type=click.Path(file_okay=False), help="A folder that keeps vectors.")
@click.option("--plot", type=click.Path(dir_okay=False), help="Write a picture; needs matplotlib.")
@click.option("--id-field", default="id", show_default=True, metavar="FIELD")
@click.option("--text-field", default="text", show_default=True, metavar="FIELD")
@click.option("--title-field", default="title", show_default=True, metavar="FIELD")
@click.option("--no-title", is_flag=True, help="Leave titles out.")
@click.option(
    "--pair-fields",
    default="s1,s2,score",
    show_default=True,
    callback=_three,
    metavar="FIRST,SECOND,SCORE",
)
@click.option("--markdown", is_flag=True, help="Print the tables as markdown.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def command(
    encoder: str | None,
    against: str | None,
    vectors: str | None,
    plot: str | None,
    markdown: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure search on labelled data, and choose dims by it.

    nDCG, MRR and recall of queries whose relevant documents are known, and Spearman's correlation
    of scored pairs, with 95 % intervals: for each prefix of the vectors, each precision, tiers and
    codes, with bytes and milliseconds.
    """
    from vecstore import evaluation
    from vecstore.evaluation import picture

    if plot is not None:
        # Before the work, not behind it.
        picture.check_picture(plot)
    sweep = _sweep(options)
    data, pairs = _data(options)
    report = evaluation.evaluate(
        encoder, retrieval=data, pairs=pairs, against=against, sweep=sweep, vectors=vectors
    )
    if plot is not None:
        evaluation.draw(report, plot)
    _print(report, markdown=markdown, as_json=as_json)


def _sweep(options: dict[str, Any]) -> Sweep:
    from vecstore.evaluation import Sweep

    names = ("dims", "precisions", "tiers", "shortlist", "codes", "indexes", "k", "seed")
    return Sweep(**{name: options[name] for name in names})


def _data(options: dict[str, Any]) -> tuple[Retrieval | None, Pairs | None]:
    """Read the labelled files that were named."""
    from vecstore import evaluation

    docs, queries, pairs = options["docs"], options["queries"], options["pairs"]
    if (docs is None) != (queries is None):
        raise UsageError("--docs and --queries go together")
    if docs is None and pairs is None:
        raise UsageError("name labelled files: --docs and --queries, or --pairs, or all three")
    if docs is None and options["qrels"] is not None:
        raise UsageError("--qrels goes with --docs and --queries")
    fields, splits = _fields(options), options["splits"]
    data = scored = None
    if docs is not None:
        data = evaluation.read_retrieval(
            docs, queries, options["qrels"], splits=splits, fields=fields
        )
    if pairs is not None:
        scored = evaluation.read_pairs(
            pairs, splits=options["pair_splits"] or splits, fields=fields
        )
    size, seed = options["sample"], options["seed"]
    if size is not None:
        data = data and data.sample(size, seed)
        scored = scored and scored.sample(size, seed)
    return data, scored


def _fields(options: dict[str, Any]) -> Fields:
    from vecstore.evaluation import Fields

    first, second, score = options["pair_fields"]
    return Fields(
        id=options["id_field"],
        text=options["text_field"],
        title=None if options["no_title"] else options["title_field"],
        first=first,
        second=second,
        score=score,
    )


def _print(report: Report, *, markdown: bool, as_json: bool) -> None:
    if as_json:
        click.echo(formats.dumps(report.to_dict(), indent=2))
        return
    if markdown:
        click.echo(report.to_markdown())
        return
    out = terminal.console()
    for table in report.tables():
        out.print(f"\n{table.title}", style="bold")
        out.print(terminal.table(table.names, table.rows, out.width))
    for note in report.notes():
        out.print(note, style="dim")
