"""The commands `nearkin index` and `nearkin search`; what they do stands in `index_files`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nearkin.shell import AsJson, TrustCode, print_json, see_own_code, shown


def index(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    source: Annotated[
        Path,
        typer.Argument(help="A folder, an image, a list of paths (.txt), a table (.csv) or .npz."),
    ],
    out: Annotated[Path, typer.Option("--out", help="The folder of the index.")],
    kind: Annotated[str, typer.Option("--kind", help="exact.")] = "exact",
    closeness: Annotated[
        str, typer.Option("--closeness", help="cosine, euclidean or inner.")
    ] = "cosine",
    force: Annotated[
        bool, typer.Option("--force", help="Replace the index that is there.")
    ] = False,
    trust_code: TrustCode = False,
    as_json: AsJson = False,
) -> None:
    """Embed items with a trained run into an index that can be searched."""
    from nearkin import index_files

    see_own_code(trust_code)
    with shown() as reporter:
        done = index_files.build(
            run,
            source,
            out,
            kind=kind,
            closeness=closeness,
            force=force,
            trust_code=trust_code,
            say=reporter.say,
            progress=reporter.embedded,
        )
    if as_json:
        print_json(done)
    else:
        print(f"{done['rows']} items of {done['dim']} dimensions in {done['index']}")


def search(
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="The folder of an index.")],
    queries: Annotated[
        list[Path], typer.Argument(metavar="QUERY...", help="Images, folders, lists or .npz.")
    ],
    k: Annotated[int, typer.Option("-k", help="How many of the nearest items.")] = 5,
    run: Annotated[
        Path | None, typer.Option("--run", help="Embeds the queries; default: as the items.")
    ] = None,
    trust_code: TrustCode = False,
    as_json: AsJson = False,
) -> None:
    """The nearest items of an index."""
    from nearkin import index_files

    see_own_code(trust_code)
    with shown() as reporter:
        found = index_files.find(
            index, queries, k, run=run, trust_code=trust_code, say=reporter.say
        )
    if as_json:
        print_json({"hits": found["hits"]})
        return
    for query, hits in zip(found["queries"], found["hits"], strict=True):
        print(query)
        for hit in hits:
            label = "" if hit["label"] is None else f"  {hit['label']}"
            print(f"  {hit['distance']:.4f}  {hit['id']}{label}")
