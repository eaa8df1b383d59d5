"""What can a shell do with a vecstore file? The `vecstore` command: one function per subcommand.

Answers go to stdout; progress and errors go to stderr. Whatever is slow to import is imported by
the command that needs it. Exit status: 0 done, 1 failed or problems found, 2 called wrongly.
"""

from __future__ import annotations

import errno
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import vecstore
from vecstore import eval_command, formats, model_commands, terminal, word_commands
from vecstore.ann.index import KINDS
from vecstore.encoders import resolve
from vecstore.errors import (
    EncoderMismatchError,
    NotFoundError,
    UsageError,
    VecstoreError,
)
from vecstore.hits import one_line
from vecstore.loading import Loader
from vecstore.spec import METRICS, PRECISIONS, Chunking

if TYPE_CHECKING:
    from vecstore.ann.index import Kind
    from vecstore.collection import Collection
    from vecstore.database import Database
    from vecstore.spec import Include

DEFAULT_COLLECTION = "default"


class _Commands(click.Group):
    """The commands, with every foreseen error turned into one line on stderr."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (VecstoreError, OSError) as error:
            # click ends quietly by itself when the reader of our output has gone.
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise
            raise click.ClickException(_message(error)) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(vecstore.__version__, prog_name="vecstore")
def main() -> None:
    """Search text by meaning: one file, no server, nothing leaves the machine."""


main.add_command(word_commands.words)
main.add_command(eval_command.command)
main.add_command(model_commands.models)


def _parse_where(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    try:
        return None if value is None else formats.from_json(formats.parse_json(value))
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"{value!r} is not JSON: {error}", ctx, param) from None


def _parse_mrl(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    try:
        return None if value is None else [int(size) for size in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"{value!r} is not DIMS,DIMS,...", ctx, param) from None


def _parse_tiers(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    try:
        pairs = [] if value is None else [pair.split("x") for pair in value.split(",")]
        return [(int(dims), int(bits)) for dims, bits in pairs] or None
    except ValueError:
        raise click.BadParameter(f"{value!r} is not DIMSxBITS, as 192x2", ctx, param) from None


_database = click.argument("database", type=click.Path(dir_okay=False))
_name = click.option("--collection", "-c", "name", metavar="NAME", help="Which collection.")
_verify = click.option("--verify", is_flag=True, help="First check all of it: a file from others.")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
_where = click.option(
    "--where", callback=_parse_where, metavar="JSON", help="""Such as '{"year": {"$gte": 2020}}'."""
)
_encoder = click.option(
    "--encoder", metavar="FOLDER|NAME", help="A model; by default the bundled one."
)


# Commands


@main.command()
@click.argument("path", default="demo.vecstore", type=click.Path(dir_okay=False))
@click.option("--limit", type=click.IntRange(min=1), hidden=True)
def demo(path: str, limit: int | None) -> None:
    """Index Python's own documentation and search it.

    The docstrings of the standard library on this machine go to PATH, by default demo.vecstore
    in the current folder. A second run reuses the file.
    """
    from vecstore import demo

    out = terminal.console()
    out.print(f"Reading the standard library of Python {platform.python_version()} ...")
    records = list(demo.stdlib_records(limit=limit or demo.MAX_RECORDS))
    with vecstore.open(path) as db:
        docs = demo.collection(db)
        fresh = demo.changed(docs, records)
        start = time.perf_counter()
        with terminal.bar("Indexing", len(fresh)) as advance:
            items = (formats.Item(record, record["id"], 1) for record in fresh)
            loader = Loader(docs, upsert=True)
            loader.load(items, advance)
        spent = time.perf_counter() - start
        done = f"embedded {len(fresh):,} in {spent:.1f} s" if fresh else "nothing new to embed"
        out.print(f"{len(records):,} docstrings in {Path(path).resolve()}; {done}", soft_wrap=True)
        _tell(loader.lost())
        for answer in demo.answers(docs):
            out.print(f"\n{answer.question.text}", style="bold")
            out.print(f"where {formats.dumps(answer.question.where)}", style="cyan")
            out.print(terminal.table(("score", "id", "lines", "docstring"), answer.rows, out.width))
            out.print(f"{answer.milliseconds:.1f} ms", style="dim")
    out.print(f"\n{demo.farewell(path)}", soft_wrap=True)


@main.command()
@_database
@_verify
@_json
def info(database: str, verify: bool, as_json: bool) -> None:
    """Show collections, encoders and sizes."""
    with vecstore.open(database, read_only=True, verify=verify) as db:
        stats = db.stats()
    if as_json:
        click.echo(formats.dumps(stats, indent=2))
        return
    size = stats["file_bytes"] / 1e6
    click.echo(one_line(f"{database}: format {stats['format']}, {size:,.1f} MB"))
    names = ("name", "records", "dim", "metric", "precision", "index", "codes", "encoder")
    rows, sizes, out = [], [], terminal.console()
    for one in stats["collections"].values():
        # Those that are stated, until there are some.
        pairs = one["codes"] or one["tiers"]
        shown = {**one, "codes": ", ".join(f"{dims} x {bits}" for dims, bits in pairs)}
        rows.append([shown[name] for name in names])
        space = one["space"].values()
        unused = sum(tier["unused"] for tier in space)
        sizes.append([one["name"], *(tier["values"] for tier in space), unused])
    out.print(terminal.table(names, rows, out.width))
    if sizes:
        head = ("bytes", "vectors", "rounded", "lists", "tail", "unused")
        out.print(terminal.table(head, sizes, out.width))


@main.command()
@_database
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, allow_dash=True)
)
@click.option("--collection", "-c", "name", metavar="NAME", help="Made if it does not exist.")
@click.option(
    "--format",
    "-f",
    "kind",
    type=click.Choice(sorted(set(formats.SUFFIXES.values()))),
    help="By default told by the suffix; jsonl on stdin.",
)
@click.option("--text-field", default="text", show_default=True, metavar="FIELD")
@click.option("--id-field", default="id", show_default=True, metavar="FIELD")
@click.option(
    "--type",
    "types",
    multiple=True,
    metavar="COLUMN=TYPE",
    help="Read a column of a CSV as int, float, bool, datetime or json. May be repeated.",
)
@click.option("--upsert", is_flag=True, help="Replace records whose ids exist.")
@click.option("--chunk", is_flag=True, help="Cut long texts into passages.")
@click.option(
    "--chunk-tokens", type=click.IntRange(min=1), metavar="N", help="At most so many in a passage."
)
@click.option(
    "--chunk-overlap", type=click.IntRange(min=0), metavar="N", help="Repeat at most so many."
)
@click.option("--late", is_flag=True, help="Read all of a text before it is cut (late chunking).")
@click.option("--dim", type=int, help="Make a collection of vectors of this dimension.")
@click.option("--metric", type=click.Choice(METRICS), help="Of a new collection.")
@click.option("--precision", type=click.Choice(PRECISIONS), help="Of a new collection.")
@click.option("--index", type=click.Choice(KINDS), help="Of a new collection.")
@click.option(
    "--mrl",
    callback=_parse_mrl,
    metavar="DIMS,...",
    help="Prefixes that the vectors of a new collection were trained for, as 64,256,768.",
)
@click.option(
    "--tiers",
    callback=_parse_tiers,
    metavar="DIMSxBITS",
    help="Short codes of a new collection's index, as 192x2; by default chosen.",
)
@_encoder
def add(
    database: str,
    files: tuple[str, ...],
    name: str | None,
    kind: str | None,
    text_field: str,
    id_field: str,
    types: tuple[str, ...],
    upsert: bool,
    chunk: bool,
    chunk_tokens: int | None,
    chunk_overlap: int | None,
    late: bool,
    **declared: Any,
) -> None:
    """Add records from files or stdin (-).

    Formats are jsonl, csv, tsv, and txt with a record per line. A JSON object or a CSV row is a
    record with the keys id, text, vector and metadata; all other keys are metadata too.
    """
    try:
        kinds = [kind or ("jsonl" if file == "-" else formats.format_of(file)) for file in files]
    except UsageError as error:
        raise click.UsageError(str(error)) from None
    try:
        fields = formats.Fields(text_field, id_field, formats.cell_types(types))
    except UsageError as error:
        raise click.BadParameter(str(error), param_hint="--type") from None
    chunking = _chunking(chunk, chunk_tokens, chunk_overlap, late)
    total = None if "-" in files else sum(Path(file).stat().st_size for file in files)
    if declared["encoder"] is not None:
        # One that does not work must leave neither a file nor a collection that is bound to it.
        declared["encoder"] = resolve(declared["encoder"])
        declared["encoder"].encode(["It works."])
    with vecstore.open(database) as db:
        name = _choose(db, name, new=DEFAULT_COLLECTION)
        loader = Loader(db.collection(name, **declared), upsert=upsert, chunk=chunking)
        try:
            with terminal.bar("Adding", total) as advance:
                for file, of in zip(files, kinds, strict=True):
                    place = "stdin" if file == "-" else file
                    with click.open_file(file, "rb") as stream:
                        loader.load(formats.read(stream, place, of, fields), advance)
        except (VecstoreError, OSError, KeyboardInterrupt) as error:
            what = _message(error) or "interrupted"
            raise click.ClickException(
                f"{what} ({loader.count:,} records before it were stored)"
            ) from error
        _tell(loader.lost())
    click.echo(one_line(f"{loader.count:,} records stored in {name!r} of {database}"))


@main.command()
@_database
@click.argument("query")
@click.option("-k", default=10, show_default=True, type=click.IntRange(min=1), help="How many.")
@_name
@_where
@click.option("--min-score", type=float, help="Leave out answers with a smaller score.")
@click.option("--dims", type=click.IntRange(min=1), help="Compare only so many leading numbers.")
@click.option("--explain", "explaining", is_flag=True, help="Say how they were found, too.")
@_encoder
@_verify
@_json
def search(
    database: str,
    query: str,
    k: int,
    name: str | None,
    where: Any,
    explaining: bool,
    verify: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Find the records nearest to a text.

    In a collection without an encoder QUERY is a JSON array of numbers.
    """
    encoder = options.pop("encoder")
    with vecstore.open(database, read_only=True, verify=verify) as db:
        chosen = db.collection(_choose(db, name), encoder=encoder)
        target = query if chosen.spec.encoder else _vector(query, chosen)
        found = chosen.explain(target, k, where=where, **options)
    hits, explanation = found.hits, {"explanation": found.to_dict()} if explaining else {}
    if as_json:
        answer = {"complete": hits.complete, "hits": hits.to_dicts(), **explanation}
        click.echo(formats.dumps(answer, indent=2))
        return
    if hits:
        out = terminal.console()
        out.print(terminal.hit_table(hits, out.width))
    else:
        click.echo("no record qualifies", err=True)
    if explaining:
        click.echo(f"\n{found}")


@main.command()
@_database
@click.argument("ids", nargs=-1, required=True)
@click.option("--int", "integers", is_flag=True, help="The ids are integers.")
@_name
@_verify
@_json
def get(
    database: str,
    ids: tuple[str, ...],
    integers: bool,
    name: str | None,
    verify: bool,
    as_json: bool,
) -> None:
    """Show records by id.

    The exit status is 1 if any is missing.
    """
    try:
        wanted = [int(value) if integers else value for value in ids]
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="IDS") from None
    with vecstore.open(database, read_only=True, verify=verify) as db:
        found = db.collection(_choose(db, name)).get(wanted)
    if as_json:
        click.echo(formats.dumps([record and record.to_dict() for record in found], indent=2))
    else:
        for record in filter(None, found):
            cells = {key: terminal.shown(value) for key, value in record.to_dict().items()}
            click.echo("".join(f"{key}: {one_line(cell)}\n" for key, cell in cells.items()))
    missing = [value for value, record in zip(wanted, found, strict=True) if record is None]
    if missing:
        hint = "" if integers else "; ids are text unless --int is given"
        raise NotFoundError(f"no record has the id {', '.join(map(repr, missing))}{hint}")


@main.command()
@_database
@click.option("--repair", is_flag=True, help="Make anew what is derived from records and vectors.")
@_json
@click.pass_context
def check(ctx: click.Context, database: str, repair: bool, as_json: bool) -> None:
    """Verify every checksum and link.

    The exit status is 1 if there are problems, or any that were not repaired.
    """
    with _existing(database) if repair else vecstore.open(database, read_only=True) as db:
        problems = db.check(repair=True) if repair else db.check()
    left = sum(not problem.repaired for problem in problems)
    if as_json:
        click.echo(formats.dumps(list(map(asdict, problems)), indent=2))
    else:
        for problem in problems:
            done = "repaired: " if problem.repaired else ""
            click.echo(one_line(f"{done}{problem.where}: {problem.what}"))
        repaired = f", {len(problems) - left:,} of them repaired" if repair and problems else ""
        advice = "; vecstore salvage reads what is left into a new file" if repair and left else ""
        click.echo(one_line(f"{database}: {len(problems):,} problems{repaired}{advice}"))
    ctx.exit(1 if left else 0)


@main.command()
@click.argument("broken", type=click.Path(dir_okay=False))
@click.argument("new", type=click.Path())
@_encoder
@_json
@click.pass_context
def salvage(ctx: click.Context, broken: str, new: str, encoder: str | None, as_json: bool) -> None:
    """Read what can be read of a damaged file into a new one.

    BROKEN is only read. The exit status is 1 if records are lost.
    """
    with terminal.console(stderr=True).status("Reading"):
        report = vecstore.salvage(broken, new, encoder=encoder)
    if as_json:
        click.echo(formats.dumps(report.to_dict(), indent=2))
    else:
        for line in str(report).splitlines():
            click.echo(one_line(line))
    ctx.exit(1 if report.lost else 0)


@main.command()
@_database
@click.argument("target", type=click.Path())
def backup(database: str, target: str) -> None:
    """Write a consistent copy to a new file.

    Others may go on writing meanwhile.
    """
    with vecstore.open(database, read_only=True) as db:
        size = db.backup(target)
    click.echo(one_line(f"{target}: {size:,} bytes"))


@main.command()
@_database
@click.option("--secure", is_flag=True, help="Keep no byte of what was deleted; takes longer.")
@_json
def compact(database: str, secure: bool, as_json: bool) -> None:
    """Give free space back to the disk.

    Nobody else may have the file open.
    """
    with _existing(database) as db:
        freed = db.compact(secure=secure)
    size = Path(database).stat().st_size
    if as_json:
        click.echo(formats.dumps({"path": database, "bytes": size, "given_back": freed}, indent=2))
    else:
        click.echo(one_line(f"{database}: {size:,} bytes, {freed:,} given back"))


@main.command()
@_database
@_name
@_json
def optimize(database: str, name: str | None, as_json: bool) -> None:
    """Bring indexes into their best state.

    Of all collections, unless one is named.
    """
    with _existing(database) as db:
        names = db.collections() if name is None else [_choose(db, name)]
        reports = {one: db.collection(one).optimize() for one in names}
    _report(reports, as_json)


@main.command()
@_database
@click.argument("kind", type=click.Choice(KINDS))
@_name
@_json
def reindex(database: str, kind: Kind, name: str | None, as_json: bool) -> None:
    """Make the index of a collection anew, as one of a kind.

    Its records stay as they are; an index that is damaged is mended so.
    """
    with _existing(database) as db:
        name = _choose(db, name)
        report = db.collection(name).reindex(kind)
    _report({name: report}, as_json)


@main.command()
@_database
@_name
@click.option("-k", default=10, show_default=True, type=click.IntRange(min=1), help="How many.")
@click.option("--sample", default=200, show_default=True, type=click.IntRange(min=1))
@click.option("--recall", default=0.95, show_default=True, type=float, help="What is wanted.")
@_where
@click.option("--recalibrate", is_flag=True, help="First measure how far searches have to go.")
@_json
def audit(
    database: str, name: str | None, recalibrate: bool, as_json: bool, **options: Any
) -> None:
    """Measure the recall of searches.

    Records are asked for, and the answers compared with exact ones. The exit status is 1 if the
    recall is less than wanted.
    """
    opened = _existing(database) if recalibrate else vecstore.open(database, read_only=True)
    with opened as db:
        found = db.collection(_choose(db, name)).audit(recalibrate=recalibrate, **options)
    click.echo(formats.dumps(found.to_dict(), indent=2) if as_json else str(found))
    click.get_current_context().exit(0 if found.holds else 1)


@main.command()
@_database
@_name
@_where
@click.option(
    "--vectors/--no-vectors",
    default=None,
    help="Print the vectors? By default only where the collection has no encoder.",
)
@_verify
def dump(database: str, name: str | None, where: Any, vectors: bool | None, verify: bool) -> None:
    """Print records as jsonl, for `vecstore add`.

    They come as they are at one moment, in the order of insertion. A record with passages is one
    line without vectors; `vecstore add --chunk` cuts it again.
    """
    out = sys.stdout.buffer
    with (
        vecstore.open(database, read_only=True, verify=verify) as db,
        db.snapshot() as view,
    ):
        chosen = view.collection(_choose(db, name))
        if vectors is None:
            vectors = chosen.spec.encoder is None
        include: list[Include] = ["text", "metadata"]
        if vectors:
            include.append("vector")
        for record in chosen.scan(where, include=include):
            shown = record.to_dict()
            if record.expires_at is not None:
                shown[formats.EXPIRES] = shown.pop("expires_at")
            if record.passages:
                # A record that is added has one vector, or none yet.
                shown.pop("vector", None)
            out.write(formats.dumps(shown).encode() + b"\n")
    out.flush()


@main.command()
@_json
def warm(as_json: bool) -> None:
    """Compile the search, so that no process has to later.

    For images of containers and other machines that are set up once. What is compiled is kept in
    the user's cache folder and fits this processor and this release.
    """
    from vecstore.ann import compiled

    if compiled.folder() is None:
        raise VecstoreError("there is no cache folder that is writable, and by nobody else")
    with terminal.console(stderr=True).status("Compiling") as status:
        done = compiled.compile_now(status.update)
    if done.folder is None:
        raise VecstoreError(f"{compiled.folder()} has no room for the compiled search")
    if as_json:
        found = {"folder": str(done.folder), "compiled": done.fresh, "seconds": done.seconds}
        click.echo(formats.dumps(found, indent=2))
    else:
        what = "compiled" if done.fresh else "already compiled; loaded"
        click.echo(one_line(f"{what} in {done.seconds:.1f} s, kept in {done.folder}"))


# Collections


def _existing(database: str) -> Database:
    """Open a file to write to it; one that is not there is not made."""
    if not Path(database).exists():
        raise NotFoundError(f"{database} does not exist")
    return vecstore.open(database)


def _choose(db: Database, name: str | None, *, new: str | None = None) -> str:
    """Return the name of the collection that is meant; `new` if there is none yet."""
    names = db.collections()
    held = f"the file has {', '.join(map(repr, names)) or 'no collection'}"
    if name is None and not names and new is not None:
        return new
    if name is None and len(names) != 1:
        raise UsageError(f"name a collection with --collection; {held}")
    if name is not None and name not in names and new is None:
        raise NotFoundError(f"no collection {name!r}; {held}")
    return name or names[0]


def _chunking(chunk: bool, tokens: int | None, overlap: int | None, late: bool) -> bool | Chunking:
    """What `add` is told of chunking; each of its options asks for it."""
    if tokens is None and overlap is None and not late:
        return chunk
    try:
        return Chunking(tokens, overlap or 0, late)
    except UsageError as error:
        raise click.UsageError(str(error)) from None


def _vector(query: str, collection: Collection) -> Any:
    try:
        return formats.parse_json(query)
    except ValueError:
        spec = collection.spec
        of = f"{spec.dim // 8} bytes" if spec.metric == "hamming" else f"{spec.dim} numbers"
        raise UsageError(
            f"collection {spec.name!r} has no encoder: QUERY is a JSON array of {of}"
        ) from None


# Output


def _tell(what: str | None) -> None:
    """Say something beside the answer, if there is anything to say."""
    if what is not None:
        click.echo(one_line(what), err=True)


def _message(error: BaseException) -> str:
    # The message itself names what a program passes.
    hint = "; on the command line: --encoder FOLDER"
    return one_line(f"{error}{hint if isinstance(error, EncoderMismatchError) else ''}")


def _report(reports: dict[str, dict[str, Any]], as_json: bool) -> None:
    """Print what was done to indexes."""
    if as_json:
        click.echo(formats.dumps(reports, indent=2))
        return
    for name, done in reports.items():
        words = [word for word in ("trained", "calibrated") if done[word]] or ["nothing to train"]
        what = f"{', '.join(words)}, {done['lists']:,} lists, {done['seconds']:.1f} s"
        click.echo(one_line(f"{name}: {what}"))
