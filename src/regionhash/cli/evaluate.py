"""The command that measures rankings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from regionhash.cli.options import Json
from regionhash.cli.output import ConsoleReporter, print_json, print_table, say


def evaluate(
    queries: Annotated[
        Path,
        typer.Argument(metavar="QUERIES", help="Code file or collection of the labelled queries."),
    ],
    database: Annotated[
        Path,
        typer.Argument(
            metavar="DATABASE", help="Code file or collection of the labelled database."
        ),
    ],
    k: Annotated[int, typer.Option(help="Length of the ranking that is measured.")] = 1000,
    ties: Annotated[
        Literal["expected", "stable"],
        typer.Option(
            help="How ties are ranked: the expectation over random orders, or in the order of the "
            "file."
        ),
    ] = "expected",
    denominator: Annotated[
        Literal["retrieved", "total", "min"],
        typer.Option(
            help="What average precision is divided by: the relevant pictures among the top k, all "
            "relevant pictures, or the smaller of k and all."
        ),
    ] = "retrieved",
    detection: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Also measure the queries' detections against the boxes of this data set.",
        ),
    ] = None,
    curves: Annotated[
        Path | None, typer.Option(help="Folder for curves over k: curves.csv and three plots.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure rankings: MAP, ACG, NDCG, WMAP, precision, recall.

    Both sets of codes must come from the same model and have labels, that is, be encoded from a
    labelled data set. A picture is relevant if it shares a label with the query.

    \b
    Example:
      regionhash encode runs/voc voc:VOCdevkit/VOC2007:trainval -o database.h5
      regionhash encode runs/voc voc:VOCdevkit/VOC2007:test -o queries.h5
      regionhash evaluate queries.h5 database.h5 --detection voc:VOCdevkit/VOC2007:test
    """
    from regionhash.collection import open_codes
    from regionhash.data import open_dataset
    from regionhash.evaluation import HammingMatrix, SharedLabels, evaluate_ranking, ranking_curves
    from regionhash.evaluation.code_files import detections_of_file, labelled_codes, write_curves

    asked, searched = open_codes(queries), open_codes(database)
    codes = labelled_codes(asked, searched)
    metrics = evaluate_ranking(*codes, k=k, ties=ties, denominator=denominator)
    n_queries, n_pictures = len(codes.query_codes), len(codes.database_codes)
    record: dict[str, Any] = {
        "queries": n_queries,
        "database": n_pictures,
        "k": min(k, n_pictures),
        "ties": ties,
        "denominator": denominator,
        "metrics": metrics,
    }
    if detection:
        objects = open_dataset(detection)
        objects.notices.tell(ConsoleReporter())
        measured, missing = detections_of_file(asked, objects)
        record["detection"] = {
            "map": measured["map"],
            "missing": missing,
            "noticed": objects.notices.counts,
        }
    if curves:
        distances = HammingMatrix(codes.query_codes, codes.database_codes)
        similarities = SharedLabels(codes.query_labels, codes.database_labels)
        write_curves(curves, asked.model, ranking_curves(distances, similarities, ties=ties))
    if as_json:
        print_json(record)
        return
    table = Table("metric", "value")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4f}" if isinstance(value, float) else str(value))
    if detection:
        table.add_row("detection mAP@0.5", f"{measured['map']:.4f}")
    say(
        f"{n_queries} queries, {n_pictures} pictures, k = {record['k']}, "
        f"ties {ties}, denominator {denominator}"
    )
    print_table(table)
