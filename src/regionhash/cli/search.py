"""The command that searches."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from regionhash.cli.options import Device, Engine, Json, Runtime
from regionhash.cli.output import print_json, print_table

if TYPE_CHECKING:
    from regionhash.search.request import Query, RequestError
    from regionhash.search.run import Answer
    from regionhash.structures import Hit, Match

_DATES = ["%Y-%m-%d"]

_FLAGS = {
    "limit": "--top",
    "group_within": "--near",
    "exclude": "--without",
    "max_distance": "--without-distance",
    "min_prob": "--min-prob",
    "min_score": "--min-score",
    "assignment": "--shared-regions",
    "other_class": "--other-class",
}
"""Flags whose names differ from the fields of `Search`."""


def search(
    codes: Annotated[Path, typer.Argument(metavar="CODES", help="A code file or a collection.")],
    query: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PICTURE[@x0,y0,x1,y1]",
            help="Picture to search by, optionally with a box in it; may be repeated.",
        ),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WORDS",
            help="Words for an object, alone or beside --query; may be repeated. Needs a "
            "collection whose encoder has a text tower.",
        ),
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(
            metavar="x0,y0,x1,y1",
            help="An object in the first query picture, in pixels; may be repeated.",
        ),
    ] = None,
    top: Annotated[int, typer.Option(help="Number of results to show.")] = 20,
    offset: Annotated[int, typer.Option(help="Number of results to skip.")] = 0,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CLASS",
            help="Only pictures with this class, known or detected (collections). May be repeated; "
            "then all are required.",
        ),
    ] = None,
    min_score: Annotated[
        float,
        typer.Option(
            help="Only pictures with a detection of at least this score, of --only if given "
            "(collections)."
        ),
    ] = 0.0,
    folder: Annotated[
        str | None, typer.Option(help="Only pictures below this folder (collections).")
    ] = None,
    after: Annotated[
        datetime | None,
        typer.Option(
            formats=_DATES, help="Only pictures taken on this day (UTC) or later (collections)."
        ),
    ] = None,
    before: Annotated[
        datetime | None,
        typer.Option(formats=_DATES, help="Only pictures taken before this day (collections)."),
    ] = None,
    near: Annotated[
        int | None,
        typer.Option(
            metavar="BITS",
            help="Show near-duplicates once: pictures whose codes differ in at most this many bits "
            "(collections).",
        ),
    ] = None,
    mode: Annotated[
        Literal["image", "region", "objects", "category"] | None,
        typer.Option(
            help="What to compare: whole pictures (image), one object (region), several objects "
            "that must all be there (objects), or each category in the query separately (category; "
            "needs a model with codes per category, iah).  [default: image for one picture, region "
            "for one box, objects for more of either]"
        ),
    ] = None,
    min_prob: Annotated[
        float | None,
        typer.Option(
            help="Mode category: the least probability of a category, in the query and in the "
            "pictures.  [default: 0.2, the model's own threshold]"
        ),
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option(
            metavar="STEP,...",
            help="Steps of a search for one object. First exact (all regions of all pictures) or "
            "global (whole pictures). After global: global-expand, then local (regions of the "
            "candidates). After exact or local: local-expand. An expansion searches again with "
            "the best results as queries.  [default: exact, or global,local if exact would take "
            "more than about 100 ms]",
        ),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PICTURE[@x0,y0,x1,y1]",
            help="Leave out pictures that show this object: what the box marks, or the best "
            "detection. May be repeated.",
        ),
    ] = None,
    without_distance: Annotated[
        int | None,
        typer.Option(
            help="Largest distance, in bits, at which a region counts as the object of --without.  "
            "[default: an eighth of the code]"
        ),
    ] = None,
    shared_regions: Annotated[
        bool,
        typer.Option(
            "--shared-regions",
            help="Mode objects: let several objects match the same region of a picture, as in the "
            "paper of DMIH. By default each object needs a region of its own.",
        ),
    ] = False,
    context: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            help="Searches for objects: add this share of the distance between the whole pictures "
            "to the distance of a picture. 0.5 helps to find small objects.",
        ),
    ] = 0.0,
    other_class: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            help="Searches for objects: add this share of the bits to the distance of a region "
            "that has another class than the query's object, if both are known.",
        ),
    ] = 0.0,
    rescore: Annotated[
        Literal["asymmetric", "floats"] | None,
        typer.Option(
            help="Searches for one object: rank the best again by more than the bits of the query. "
            "`asymmetric` weighs them by how sure the query is of each; `floats` compares the "
            "features that `regionhash index --keep-floats` keeps. Slower by a few milliseconds."
        ),
    ] = None,
    candidates: Annotated[
        int | None,
        typer.Option(
            help="Pictures that the first of several steps passes on, or that --rescore ranks "
            "again; no more are found.  [default: 400]"
        ),
    ] = None,
    expand: Annotated[
        int | None, typer.Option(help="Results that an expansion uses as queries.  [default: 6]")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the model that made the codes.  [default: next to the codes, or as "
            "recorded in them]"
        ),
    ] = None,
    sheet: Annotated[
        Path | None,
        typer.Option(help="Also write the results as a contact sheet, a .png or .html file."),
    ] = None,
    images_dir: Annotated[
        Path | None, typer.Option(help="Where the pictures are, if they have moved; for --sheet.")
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CLASS",
            help="Class that a correct result shows: the sheet frames correct results green and "
            "others red, if the codes have labels. May be repeated; then all are required.",
        ),
    ] = None,
    device: Device = "auto",
    runtime: Runtime = "auto",
    engine: Engine = "local",
    as_json: Json = False,
) -> None:
    """Find pictures that look alike, or that contain given objects.

    Distances are numbers of differing bits; ties are ranked in the order of the code file. A query
    picture without a box stands for its best detection in mode region, and for the best detection
    of each class in mode objects. Several objects are matched with different regions of a picture;
    an object for which no region is left costs all bits, and its box is "none". A distance of
    several parts is shown as their sum, the part of --context last.

    \b
    Examples:
      regionhash search codes.h5 --query cat.jpg
      regionhash search codes.h5 --query cat.jpg --box 10,20,200,220 --sheet found.html
      regionhash search codes.h5 --query cat.jpg@10,20,200,220 --query dog.jpg
      regionhash search codes.h5 --query cup.jpg --box 10,20,40,50 --context 0.5
      regionhash search codes.h5 --query horse.jpg --without person.jpg@30,10,90,200
      regionhash search photos.index --query cat.jpg --box 10,20,200,220 --steps exact,local-expand
      regionhash search photos.collection --query cup.jpg --box 10,20,40,50 --rescore asymmetric
      regionhash search iah.h5 --query cat_and_dog.jpg --mode category --sheet found.html
      regionhash search photos.collection --query cat.jpg --box 10,20,200,220 --near 4
      regionhash search photos.collection --text "a red backpack"
      regionhash search photos.collection --query chair.jpg@10,20,200,220 --text "a cat"
    """
    if not (query or text):
        raise ValueError("nothing to search by: give --query or --text")
    from regionhash.collection import Collection, Filter, Search, is_collection
    from regionhash.data.inputs import Pictures
    from regionhash.search.answer import write_answer
    from regionhash.search.request import Query, RequestError
    from regionhash.search.run import load_model_of, run
    from regionhash.store import CodeSet

    chosen = Filter(tuple(only or ()), min_score, folder, _seconds(after), _seconds(before))
    needing = chosen != Filter() or near is not None or offset or engine != "local"
    if not is_collection(codes) and needing:
        raise ValueError(
            f"{codes}: --only, --min-score, --folder, --after, --before, --near, --offset and "
            "--engine need a collection; this is a code file"
        )
    collection = None
    if is_collection(codes):
        collection = Collection.open(codes, device=device, runtime=runtime, engine=engine)
    file = CodeSet.open(codes) if collection is None else collection.codes()
    wanted = [_class_index(name, file.classes) for name in label or ()]
    if wanted and file.labels is None:
        raise ValueError(f"{codes}: has no labels, so --label cannot say what is correct")
    if sheet is None and (wanted or images_dir):
        raise ValueError("--label and --images-dir need --sheet")
    if min_prob is not None and mode != "category":
        raise ValueError("--min-prob needs --mode category")
    try:
        request = Search(
            [*_queries(query or [], box or []), *(Query(text=words) for words in text or ())],
            exclude=_queries(without or [], []),
            mode=mode,
            steps=[step.strip() for step in steps.split(",")] if steps is not None else (),
            rescore=rescore,
            candidates=candidates,
            expand=expand,
            min_prob=min_prob,
            max_distance=without_distance,
            assignment="shared" if shared_regions else "distinct",
            context=context,
            other_class=other_class,
            filter=chosen,
            group_within=near,
            limit=top,
            offset=offset,
        )
    except RequestError as error:
        raise _named_by_flag(error) from error
    loaded = load_model_of(file, model, device, runtime, advice="; pass it with --model")
    try:
        if collection is None:
            answer = run(*loaded, file, request)
        else:
            collection.model = loaded
            answer = collection.find(request)
    except RequestError as error:
        raise _named_by_flag(error) from error
    if sheet:
        find_picture = Pictures(file.recorded("sources"), images_dir).__getitem__
        if collection is not None and images_dir is None:
            find_picture = collection.pixels
        n_hits = len(answer.hits) + sum(len(group.hits) for group in answer.groups)
        title = f"{n_hits} nearest of {len(answer.codes)} pictures, by {answer.mode}"
        write_answer(sheet, answer, find_picture, title=title, wanted=wanted)
    for note in answer.notes:
        typer.echo(f"note: {note}", err=True)
    if as_json:
        print_json(_record(answer))
    elif answer.mode == "category":
        _print_groups(answer)
    elif not answer.hits:
        left_out = without or offset or chosen != Filter()
        typer.echo("all pictures were left out" if left_out else "no picture has a region")
    else:
        print_table(_hit_table(answer.hits, answer))


def _named_by_flag(error: RequestError) -> ValueError:
    return ValueError(f"{_FLAGS.get(error.field, f'--{error.field}')} {error.reason}")


def _queries(given: list[str], boxes: list[str]) -> list[Query]:
    """The pictures of --query, the first also with the boxes of --box."""
    from regionhash.data.images import read_image
    from regionhash.search.request import Query

    queries: list[Query] = []
    for text in given:
        name, marks = text, list(boxes) if not queries else []
        if not Path(text).exists() and "," in text.rpartition("@")[2]:
            name, _, mark = text.rpartition("@")
            marks.append(mark)
        marked = [_parse_box(mark) for mark in marks]
        queries.append(Query(read_image(name), boxes=marked, name=Path(name).name))
    return queries


def _parse_box(text: str) -> tuple[float, float, float, float]:
    try:
        x0, y0, x1, y1 = map(float, text.split(","))
    except ValueError:
        raise ValueError(f"box {text!r}: must be four numbers x0,y0,x1,y1") from None
    return x0, y0, x1, y1


def _class_index(name: str, classes: tuple[str, ...]) -> int:
    if name not in classes:
        raise ValueError(
            f"label {name!r}: not a class of the model, which knows {', '.join(classes)}"
        )
    return classes.index(name)


def _seconds(day: datetime | None) -> float | None:
    """The start of a day, in seconds since 1970."""
    return None if day is None else day.replace(tzinfo=UTC).timestamp()


def _hit_table(hits: Sequence[Hit], answer: Answer) -> Table:
    """One row per hit; for several objects, the match columns have a line for each."""
    from regionhash.search.answer import distance_text

    matches = [match for hit in hits for match in hit.matches]
    # Hits by codes of whole pictures or of categories have no matched boxes, and regions of some
    # models neither classes nor scores.
    shown = {
        "rank": True,
        "distance": True,
        "picture": True,
        "box": bool(matches),
        "class": any(match.label >= 0 for match in matches),
        "score": any(match.score is not None for match in matches),
    }
    table = Table(*(name for name, wanted in shown.items() if wanted))
    for rank, hit in enumerate(hits, 1 + answer.offset):
        cells = [
            str(rank),
            distance_text(hit),
            hit.image_id,
            "\n".join(_box_text(match) for match in hit.matches),
            "\n".join(_class_name(match, answer) or "" for match in hit.matches),
            "\n".join(_score_text(match) for match in hit.matches),
        ]
        table.add_row(*compress(cells, shown.values()))
    return table


def _box_text(match: Match) -> str:
    return "none" if match.box is None else ",".join(f"{edge:.0f}" for edge in match.box)


def _score_text(match: Match) -> str:
    return "" if match.score is None else f"{match.score:.2f}"


def _print_groups(answer: Answer) -> None:
    from regionhash.search.answer import heading_text

    if not answer.groups:
        typer.echo("no category in the query is probable enough")
    for group in answer.groups:
        typer.echo(f"{heading_text(group, answer.codes)}, {len(group.hits)} pictures")
        print_table(_hit_table(group.hits, answer))


def _class_name(match: Match, answer: Answer) -> str | None:
    """Name of a match's class; None if the model has no classes."""
    return answer.codes.classes[match.label] if match.label >= 0 else None


def _record(answer: Answer) -> dict[str, Any]:
    def line(rank: int, hit: Hit) -> dict[str, Any]:
        return {"rank": rank, "picture": hit.image_id, "distance": hit.distance}

    def match_record(match: Match) -> dict[str, Any]:
        return {
            "box": match.box,
            "distance": match.distance,
            "class": _class_name(match, answer),
            "score": match.score,
        }

    first = 1 + answer.offset
    return {
        "mode": answer.mode,
        "steps": answer.steps,
        "notes": answer.notes,
        "queries": [
            {"picture": query.name, "boxes": query.boxes}
            if query.text is None
            else {"text": query.text}
            for query in answer.queries
        ],
        "groups": [
            {
                "category": answer.codes.classes[group.category],
                "probability": group.prob,
                "hits": [line(rank, hit) for rank, hit in enumerate(group.hits, first)],
            }
            for group in answer.groups
        ],
        "without": [{"picture": query.name, "boxes": query.boxes} for query in answer.excluded],
        "hits": [
            line(rank, hit)
            | {"matches": [match_record(match) for match in hit.matches], "context": hit.context}
            for rank, hit in enumerate(answer.hits, first)
        ],
    }
