"""What can a shell do with models? The `vecstore models` commands."""

from __future__ import annotations

from typing import Any

import click

from vecstore import formats, terminal
from vecstore.encoders import OnnxEncoder, bundled, bundled_names, inspection, is_bundled, trial
from vecstore.encoders.bundled import parse
from vecstore.errors import UsageError
from vecstore.hits import one_line

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
_model = click.argument("model", metavar="FOLDER|NAME")
_layer = click.option("--layer", type=int, help="End after so many of its layers.")
_dim = click.option("--dim", type=int, help="Keep so many numbers of each vector.")


@click.group()
def models() -> None:
    """List, look into, test and export models that embed text."""


@models.command("list")
@_json
def list_models(as_json: bool) -> None:
    """Show the models that come with the package."""
    found = [inspection.summary(bundled(name)) for name in bundled_names()]
    if as_json:
        click.echo(formats.dumps(found, indent=2))
        return
    names = ("name", "dim", "prefixes", "layers", "tokens", "size", "licence")
    rows = [
        (
            one["name"],
            one["dim"],
            _listed(one["mrl"]),
            _listed(one["layers"]),
            one["max_length"],
            _megabytes(one["bytes"]),
            one["licence"],
        )
        for one in found
    ]
    out = terminal.console()
    out.print(terminal.table(names, rows, out.width))


@models.command()
@_model
@_layer
@_dim
@_json
def inspect(model: str, layer: int | None, dim: int | None, as_json: bool) -> None:
    """Show what a model declares and holds, without running it."""
    found = inspection.inspect(_opened(model, layer, dim))
    if as_json:
        click.echo(formats.dumps(found, indent=2))
        return
    shown = {
        **found,
        "bytes": _megabytes(found["bytes"]),
        "files": {name: _megabytes(size) for name, size in found["files"].items()},
        "weights": {name: _megabytes(size) for name, size in found["weights"].items()},
        "inputs": {name: _value(value) for name, value in found["inputs"].items()},
        "outputs": {name: _value(value) for name, value in found["outputs"].items()},
    }
    for name, value in shown.items():
        click.echo(one_line(f"{name.replace('_', ' ')}: {_shown(value)}"))


@models.command()
@_model
@_layer
@_dim
@click.option("--threads", type=click.IntRange(min=1), help="By default one for each core.")
@_json
@click.pass_context
def test(
    ctx: click.Context,
    model: str,
    layer: int | None,
    dim: int | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Load a model, encode texts of many lengths, and time it.

    The exit status is 1 if a check failed.
    """
    report = trial.run(_opened(model, layer, dim, threads))
    if as_json:
        click.echo(formats.dumps(report.to_dict(), indent=2))
    else:
        rows = [(check.status, check.name, check.found) for check in report.checks]
        out = terminal.console()
        out.print(terminal.table(("status", "check", "found"), rows, out.width))
        # A table shortens what does not fit.
        for check in report.checks:
            if check.status == "failed":
                click.echo(one_line(f"{check.name}: {check.found}"), err=True)
    ctx.exit(0 if report.works else 1)


@models.command()
@click.argument("folder", type=click.Path())
@click.argument("out", type=click.Path())
@click.option("--int8", is_flag=True, help="Store matrices as int8: a quarter of the size.")
@_json
def export(folder: str, out: str, int8: bool, as_json: bool) -> None:
    """Make an ONNX model of a sentence-transformers folder.

    FOLDER has its weights in safetensors; BERT, RoBERTa, XLM-RoBERTa, DistilBERT and MPNet can be
    exported. OUT must not exist. Needs the extra: pip install 'vecstore[export]'.
    """
    from vecstore.encoders.export import export

    made = export(folder, out, int8=int8)
    found = inspection.summary(OnnxEncoder(made))
    if as_json:
        click.echo(formats.dumps({"folder": str(made), **found}, indent=2))
    else:
        size = _megabytes(found["bytes"])
        click.echo(
            one_line(f"{made}: {found['dim']} numbers, {found['max_length']} tokens, {size}")
        )


def _opened(
    model: str, layer: int | None, dim: int | None, threads: int | None = None
) -> OnnxEncoder:
    if not is_bundled(model):
        return OnnxEncoder(model, layer=layer, dim=dim, threads=threads)
    if layer is None and dim is None and threads is None:
        return bundled(model)
    base, *stated = parse(model)
    layer, dim = (
        _one_of(model, option, given, named)
        for option, given, named in zip(("layer", "dim"), (layer, dim), stated, strict=True)
    )
    folder = bundled(base).folder.path
    return OnnxEncoder(folder, name=base, layer=layer, dim=dim, threads=threads)


def _one_of(model: str, option: str, given: int | None, named: int | None) -> int | None:
    if given is None or named is None:
        return named if given is None else given
    if given != named:
        raise UsageError(f"{model!r} and --{option} {given} contradict each other; state one")
    return given


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _listed(values: list[int]) -> str:
    return ", ".join(map(str, values))


def _value(value: dict[str, Any]) -> str:
    shape = value["shape"]
    sizes = "?" if shape is None else " x ".join("?" if n is None else str(n) for n in shape)
    return f"{value['type']} {sizes}"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} ({_shown(one)})" for name, one in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value in (None, "") else str(value)
