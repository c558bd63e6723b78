"""The command `nearkin evaluate`; what it does stands in `measured` and `detail`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from nearkin.shell import (
    AsJson,
    TrustCode,
    print_json,
    see_own_code,
    shown,
    speaks,
    width,
)

Source = Annotated[str, typer.Argument(metavar="RUN|FILE.npz", help="A run, or embeddings.")]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="Measure a run on this folder, or on the test split of a .csv, .npz or data set.",
    ),
]
Metrics = Annotated[
    list[str] | None, typer.Option("--metrics", help="Comma-separated, repeatable.")
]
Closeness = Annotated[
    str | None, typer.Option("--closeness", help="cosine or euclidean; default: both.")
]
Floors = Annotated[
    bool, typer.Option("--floors", help="Beside it the features raw, standardized and whitened.")
]
Against = Annotated[
    str | None,
    typer.Option("--against", help="Another run or .npz of the same queries: paired test."),
]
Over = Annotated[
    str, typer.Option("--over", help="What intervals and tests resample: classes or queries.")
]
By = Annotated[
    str | None,
    typer.Option("--by", help="A table by class, group or super (super-label), worst first."),
]
Worst = Annotated[int | None, typer.Option("--worst", help="Only so many lines of that table.")]
Thieves = Annotated[
    int | None,
    typer.Option("--thieves", help="So many pairs of classes, the one found for the other."),
]
Wrong = Annotated[
    int | None,
    typer.Option("--wrong", help="So many wrong nearest neighbors, the most similar first."),
]
Gains = Annotated[
    str | None,
    typer.Option("--gains", help="Graded ndcg@K: of the class and its super-label, as 2,1."),
]


def evaluate(
    source: Source,
    data: Data = None,
    metrics: Metrics = None,
    closeness: Closeness = None,
    floors: Floors = False,
    against: Against = None,
    over: Over = "classes",
    by: By = None,
    worst: Worst = None,
    thieves: Thieves = None,
    wrong: Wrong = None,
    gains: Gains = None,
    trust_code: TrustCode = False,
    as_json: AsJson = False,
) -> None:
    """Measure a run, or anybody's embeddings, exactly."""
    from nearkin import detail, measured
    from nearkin.measure import Asked
    from nearkin.runtime import processes

    wish = detail.Wish.of(by=by, worst=worst, thieves=thieves, wrong=wrong, against=against)
    asked = Asked(detail.known_over(over), detail.given_gains(gains))
    see_own_code(trust_code)
    wanted = [name for part in metrics or [] for name in part.split(",") if name.strip()]
    if metrics and not wanted:
        raise ValueError("--metrics names none; give some, such as recall@1,map@r")
    with shown() as reporter, processes():
        told = {
            "progress": reporter.embedded,
            "say": reporter.say,
            "compared": reporter.compared,
        }
        found = measured.measure(
            source,
            data=data,
            metrics=[name.strip() for name in wanted] or None,
            closeness=closeness,
            with_floors=floors,
            trust_code=trust_code,
            asked=asked,
            **told,
        )
        found |= detail.of(wish, asked, source, data, trust_code, told)
    if not speaks():
        return
    if as_json:
        print_json(found)
        return
    _show(found, list(asked.results), str(data or source))


def _show(found: dict[str, Any], closenesses: list[str], name: str) -> None:
    from nearkin.console import block_table, floors_table, remarks
    from nearkin.detail_tables import lines

    scores = {closeness: found[closeness] for closeness in closenesses}
    for closeness in closenesses:
        title = f"{name} ({closeness}, %)"
        print(block_table([("value", scores)], closeness, title, width()), end="\n\n")
    if "floors" in found:
        print(floors_table(found["floors"], width()), end="\n\n")
    for table in lines(found, width()):
        print(table, end="\n\n")
    print(remarks({"test": found, "floors": found.get("floors", {})}))
