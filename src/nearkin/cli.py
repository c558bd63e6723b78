"""The command line. Heavy modules load inside the commands, so that --help answers at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nearkin.cli_evaluate import evaluate
from nearkin.cli_index import index, search
from nearkin.shell import (
    AsJson,
    TrustCode,
    app,
    data_app,
    guarded,
    note,
    print_json,
    see_own_code,
    shown,
    speaks,
    width,
)

if TYPE_CHECKING:
    from nearkin.catalog import Entry


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from nearkin import __version__

        print(f"nearkin {__version__}")
        raise typer.Exit(0)


@app.command()
def train(
    recipe: Annotated[
        str, typer.Argument(help="A bundled recipe, a YAML file or a folder of images.")
    ] = "glyphs",
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The run folder; default runs/<recipe>.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a run stopped.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the run that is there.")] = False,
    trust_code: TrustCode = False,
    as_json: AsJson = False,
) -> None:
    """Train by a recipe, evaluate on classes never seen in training, write a run folder."""
    from nearkin import run
    from nearkin.console import scores_table

    if resume and force:
        raise ValueError("--resume goes on with a run and --force replaces it; give one of them")
    changes = list(settings or [])
    if "=" in recipe and not Path(recipe).exists():
        recipe, changes = "glyphs", [recipe, *changes]
    see_own_code(trust_code)
    with shown() as reporter:
        done = run.train(
            recipe,
            set=changes,
            out=out,
            resume=resume,
            force=force,
            trust_code=trust_code,
            reporter=reporter,
        )
    if not speaks():
        return
    if as_json:
        print_json({**done.metrics, "run": str(done.folder)})
        return
    print(scores_table(done.metrics, width=width()))
    print(f"report: {done.folder / 'report.html'}")


app.command()(evaluate)


@app.command()
def embed(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    source: Annotated[
        Path,
        typer.Argument(help="A folder, an image, a list of paths (.txt), a table (.csv) or .npz."),
    ],
    out: Annotated[Path, typer.Option("--out", help="FILE.npz or FILE.parquet.")],
    force: Annotated[bool, typer.Option("--force", help="Replace the file that is there.")] = False,
    precision: Annotated[
        str | None,
        typer.Option("--precision", help="float32 or bfloat16; default: as the run trained."),
    ] = None,
    trust_code: TrustCode = False,
    as_json: AsJson = False,
) -> None:
    """Embed images with a trained run: embeddings, ids and labels."""
    from nearkin import embed_files

    see_own_code(trust_code)
    with shown() as reporter:
        done = embed_files.embed(
            run,
            source,
            out,
            force=force,
            precision=precision,
            trust_code=trust_code,
            say=reporter.say,
            progress=reporter.embedded,
        )
    if as_json:
        print_json(done)
    else:
        print(f"{done['rows']} embeddings of {done['dim']} dimensions in {done['file']}")


app.command()(index)
app.command()(search)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="One or several runs.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="The page; default report.html in the first run.")
    ] = None,
    trust_code: TrustCode = False,
    as_json: AsJson = False,
) -> None:
    """Write the report of one or several runs: one HTML page that opens without a network."""
    from nearkin import reporting

    see_own_code(trust_code)
    page = reporting.report(runs, out, trust_code=trust_code, say=note)
    if as_json:
        print_json({"report": str(page)})
    else:
        print(page)


@app.command()
def information(
    source: Annotated[
        str | None, typer.Argument(metavar="[RUN|FILE.npz]", help="A run, or embeddings.")
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Instead: the estimators on tasks of known truth.")
    ] = False,
    estimators: Annotated[
        str | None, typer.Option("--estimators", help="With --calibrate: these, comma-separated.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="With --calibrate: all tasks, more pairs; hours.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", help="Of folds, samples and training.")] = 0,
    as_json: AsJson = False,
) -> None:
    """How many bits embeddings know of their labels, with intervals and the ceiling."""
    from nearkin import informed

    informed.check(source, calibrate, estimators, full)
    with shown() as reporter:
        found, text = informed.answer(source, estimators, full, seed, reporter.tried, width())
    print_json(found) if as_json else print(text)


@data_app.command("list")
def data_list(as_json: AsJson = False) -> None:
    """The data sets that a recipe can name."""
    _list("data", as_json)


@data_app.command("prepare")
def data_prepare(
    name: Annotated[str, typer.Argument(metavar="NAME", help="cub, cars, sop, inshop, omniglot.")],
    archive: Annotated[
        list[Path] | None,
        typer.Option("--archive", help="A file at hand instead of a download; repeatable."),
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--to", help="The folder of the set; default: in the cache.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Download without asking.")] = False,
    as_json: AsJson = False,
) -> None:
    """Download the archive of a data set, or extract one at hand, and check its layout."""
    from nearkin import preparing

    ask = (lambda text: True) if yes else _confirmed
    with shown() as reporter:
        done = preparing.prepare(
            name,
            archives=archive or (),
            to=to,
            ask=ask,
            say=reporter.say,
            progress=reporter.megabytes,
        )
    if as_json:
        print_json(done)
        return
    counts = [f"{k} {v['rows']} of {v['classes']} classes" for k, v in done["splits"].items()]
    print(f"{name} is ready in {done['path']}: {', '.join(counts)}")
    if to is not None:
        print(f"name the folder in a recipe: data.{name}.path={done['path']}")


def _confirmed(text: str) -> bool:
    if not sys.stdin.isatty():
        raise ValueError(f"{text} There is nobody to ask here; answer with --yes")
    return typer.confirm(text, err=True)


@data_app.command("check")
def data_check(
    source: Annotated[
        str,
        typer.Argument(
            metavar="PATH|NAME", help="A folder of images, a .csv, .parquet or .npz, or a data set."
        ),
    ],
    path: Annotated[
        Path | None, typer.Option("--path", help="Where a named set lies, if not in the cache.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look for what would stop training or leak into the test; exits 1 if there is something."""
    from nearkin.catalog import KINDS, scan
    from nearkin.data.check import check, check_set

    named = scan(KINDS["data"]).get(source)
    if named is None and path is not None:
        raise ValueError(f"--path goes with the name of a data set, and {source!r} is none")
    with shown() as reporter:
        if named is None:
            found = check(source, reporter.prepared)
        else:
            found = check_set(named, path, reporter.prepared)
    if as_json:
        print_json(found.to_dict())
    else:
        print("\n".join(found.lines()))
    if not found.ok:
        raise typer.Exit(1)


@app.command("list")
def list_(
    kind: Annotated[
        str | None, typer.Argument(help="losses, recipes, encoders, ...; default: the kinds.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What there is, each with a line and its source."""
    if kind is None:
        from nearkin.catalog import KINDS

        _print_items(
            [(k.plural, f"nearkin list {k.plural}", k.where) for k in KINDS.values()], as_json
        )
        return
    _list(kind, as_json)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Of a loss, an encoder, a recipe, a metric ...")],
    as_json: AsJson = False,
) -> None:
    """Everything about one thing: its formula, settings and defaults, source."""
    from nearkin.catalog import find

    entries = find(name)
    if as_json:
        keys = ("name", "kind", "summary", "source", "signature", "doc", "module")
        print_json({"items": [{key: getattr(entry, key) for key in keys} for entry in entries]})
        return
    for entry in entries:
        signature = entry.signature.replace("collections.abc.", "")
        print(f"{entry.kind} {signature}\n\n{entry.doc.strip()}\n\n({entry.module})\n")


@app.command()
def recipe(
    name: Annotated[str, typer.Argument(help="A bundled recipe.")], as_json: AsJson = False
) -> None:
    """Print a bundled recipe, to copy and change."""
    from nearkin.catalog import recipe_files
    from nearkin.config import load_recipe

    read = load_recipe(name)
    if as_json:
        print_json(read)
        return
    file = recipe_files().get(name, Path(name))
    print(file.read_text(encoding="utf-8"), end="")


def _list(kind: str, as_json: bool) -> None:
    from nearkin.catalog import members

    _print_items([(e.name, _summary(e), e.source) for e in members(kind)], as_json)


def _summary(entry: Entry) -> str:
    """The first sentences of a member, without the source that stands beside them."""
    if entry.kind in ("recipe", "metric"):
        return entry.summary
    paragraph = " ".join(entry.doc.partition("\n\n")[0].split())
    return paragraph.replace(f" ({entry.source})", "")


def _print_items(items: list[tuple[str, str, str]], as_json: bool) -> None:
    if as_json:
        keys = ("name", "summary", "source")
        print_json({"items": [dict(zip(keys, item, strict=True)) for item in items]})
        return
    from nearkin.console import listing

    # Printed by print: rich would end the program where its reader has gone.
    print(listing(items, width()), end="", flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Run a command. Exit codes: 0 done, 1 a check failed, 2 wrong use or input, 130
    interrupted."""
    sys.exit(guarded(lambda: _command(arguments)))


def _command(arguments: list[str] | None) -> int:
    # Not its main(), which would swallow what a Ctrl-C has to say.
    command = typer.main.get_command(app)
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with command.make_context("nearkin", given) as context:
            command.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    return 0
