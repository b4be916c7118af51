"""The commands for collections: create, change, check, export and import."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from regionhash.cli.options import (
    BatchSize,
    Device,
    Folder,
    Json,
    Precision,
    Runtime,
    Seed,
    Short,
    Strict,
    Weights,
    Workers,
    n_workers,
)
from regionhash.cli.output import ConsoleReporter, added_line, added_record, print_json, say

if TYPE_CHECKING:
    from regionhash.parts.hashes import FitReport


def index(
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES",
            help="A folder, or anything else that `regionhash encode` takes. No labels needed.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the new collection.")],
    bits: Annotated[
        int | None, typer.Option(help="Bits of every code, a multiple of 8.  [default: 1024]")
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            metavar="ENCODER",
            help="What gives the features: `onnx:FILE`, `hf:NAME` of the Hugging Face hub, "
            "`timm:NAME` or `torchvision:NAME`; docs/encoders.md has them all.  "
            "[default: hf:onnx-community/dinov2-small]",
        ),
    ] = None,
    hash_name: Annotated[
        str | None,
        typer.Option(
            "--hash",
            metavar="HASH",
            help="How an encoder's features become bits: `drh` is trained on them, `itq` rotates "
            "them, `sign` takes their signs, `hyperplanes` are random.  [default: drh]",
        ),
    ] = None,
    regions: Annotated[
        Literal["map", "crop", "both"] | None,
        typer.Option(
            help="Pool regions from an encoder's `map` of the whole picture, in one pass; `crop` "
            "each and encode it as a picture of its own, which takes many; or join `both`, which "
            "finds more small objects.  [default: map]"
        ),
    ] = None,
    pooling: Annotated[
        Literal["max", "mean"] | None,
        typer.Option(
            help="How the cells of a region of an encoder's map become its feature: their maximum "
            "or their average, which is better for boxes of a detector.  [default: max for maps of "
            "convolutions, mean for tokens]"
        ),
    ] = None,
    dims: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Dimensions of the features after whitening, at most as many as before it. Fewer "
            "may find more; try 32 and 64.  [default: 128, or as many as bits for itq and sign]",
        ),
    ] = None,
    keep_floats: Annotated[
        bool,
        typer.Option(
            "--keep-floats",
            help="Also keep the features that the bits are made from, one byte for each of --dims "
            "and region, for `regionhash search --rescore floats`; docs/search.md says when that "
            "pays.",
        ),
    ] = False,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Instead of an encoder, a backbone listed by `regionhash models`, run by torch."
        ),
    ] = None,
    weights: Weights = None,
    overlap: Annotated[
        float | None,
        typer.Option(
            help="Overlap of the windows used as regions, in [0, 1): 0.4, 0.5, 0.6 and 0.7 give "
            "21, 36, 40 and 60 windows.  [default: 0.6]"
        ),
    ] = None,
    proposals: Annotated[
        str | None,
        typer.Option(
            metavar="REGIONS",
            help="The regions: `windows`; `pyramid`, windows down to a sixth of a side; "
            "`boxes:FILE`, boxes that a detector found, as COCO results, COCO, CSV or a folder of "
            "YOLO's text files; `onnx:FILE`, boxes that a detector finds, a graph of ONNX with "
            "non-maximum suppression, which is copied into the collection; `+windows` or "
            "`+pyramid` after either, these and windows; or `detector:CHECKPOINT`, proposals of a "
            "trained region-dh. A CHECKPOINT alone is "
            "taken as the latter.  [default: windows]",
        ),
    ] = None,
    max_regions: Annotated[
        int | None,
        typer.Option(
            help="Greatest number of boxes, and of windows of a pyramid, per picture.  "
            "[default: 300]"
        ),
    ] = None,
    min_box_score: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Least score of the boxes that `onnx:FILE` finds.  [default: 0.25, or that of "
            "FILE.json]",
        ),
    ] = None,
    max_iou: Annotated[
        float | None,
        typer.Option(
            "--max-iou",
            help="Drop regions that overlap a better one by more than this intersection over "
            "union, in (0, 1].  [default: 1]",
        ),
    ] = None,
    short: Short = None,
    seed: Seed = 0,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="Use this trained model, of any kind, instead of fitting one.",
        ),
    ] = None,
    strict: Strict = False,
    batch_size: BatchSize = 8,
    workers: Workers = None,
    precision: Precision = "auto",
    device: Device = "auto",
    runtime: Runtime = "auto",
    as_json: Json = False,
) -> None:
    """Make unlabelled pictures searchable, as a collection.

    A collection is one folder that you can search, change, move and copy. What makes the bits is
    fitted once, on at most 2,000 of the pictures; no labels are needed. Run the command again to
    resume it, add new pictures and re-encode changed ones. Files that cannot be read are reported
    and skipped.

    \b
    Example:
      regionhash index photos -o photos.collection
      regionhash search photos.collection --query photos/cat.jpg --box 40,30,220,200
      regionhash serve photos.collection
    """
    from dataclasses import asdict

    from regionhash.collection.indexing import IndexSettings, build_index

    kind, place = _proposals(proposals)
    if min_box_score is not None and not (kind or "").startswith("onnx"):
        raise ValueError("min_box_score needs the proposals onnx:FILE")
    given = {
        "n_bits": bits,
        "backbone": backbone,
        "weights": weights,
        "overlap": overlap,
        "proposals": None if kind == "detector" else kind and kind.replace("onnx", "boxes"),
        "n_proposals": max_regions,
        "hash": hash_name,
        "regions": regions,
        "pooling": pooling,
        "n_dims": dims,
        "max_iou": max_iou,
    }
    arguments = {name: value for name, value in given.items() if value is not None}
    detector = place if kind == "detector" else None
    boxes: Path | OnnxDetector | None = None if kind == "detector" else place
    if place and (kind or "").startswith("onnx"):
        from regionhash.detectors import OnnxDetector

        boxes = OnnxDetector(place, min_score=min_box_score)
    settings = IndexSettings(
        arguments, short, seed, detector, model, boxes, encoder=encoder, keep_floats=keep_floats
    )
    report = build_index(
        images,
        output,
        settings,
        reporter=ConsoleReporter(),
        device=device,
        runtime=runtime,
        precision=precision,
        batch_size=batch_size,
        workers=n_workers(workers),
    )
    if as_json:
        record = {
            "index": str(output),
            "model": report.checkpoint.name,
            "model_hash": report.checkpoint.model_hash,
            "fit": None if report.fit is None else asdict(report.fit),
        }
        print_json(record | added_record(report.added))
    else:
        if report.fit:
            say(_fit_line(report.fit))
        say(added_line(output, report.added))
        say(f"next: regionhash search {output} --query PICTURE --box x0,y0,x1,y1")
        say(f"   or: regionhash serve {output}")
    if strict and report.added.encoding.skipped:
        raise typer.Exit(1)


def add(
    collection: Folder,
    images: Annotated[list[str], typer.Argument(metavar="IMAGES", help="See `regionhash encode`.")],
    again: Annotated[
        bool, typer.Option("--again", help="Also add pictures that were removed before.")
    ] = False,
    boxes: Annotated[
        Path | None,
        typer.Option(
            help="A file of boxes of these pictures, see `regionhash index --proposals`; it is "
            "read again by `refresh`."
        ),
    ] = None,
    renew_boxes: Annotated[
        bool,
        typer.Option(
            "--renew-boxes",
            help="Also encode pictures again that are in the collection already, if the file of "
            "--boxes has them.",
        ),
    ] = False,
    strict: Strict = False,
    batch_size: BatchSize = 8,
    workers: Workers = None,
    precision: Precision = "auto",
    device: Device = "auto",
    runtime: Runtime = "auto",
    as_json: Json = False,
) -> None:
    """Add pictures to a collection.

    Pictures are identified by the content of their files: a moved file is not encoded again, a
    changed one is. Run the command again to resume it. Files that cannot be read are reported and
    skipped. Pictures that were removed before stay out, unless their file itself is named.

    \b
    Example:
      regionhash add photos.collection holidays
    """
    from regionhash.collection import Collection
    from regionhash.precision import check_same_precision

    with Collection.open(collection, device=device, runtime=runtime) as opened:
        check_same_precision(collection, opened.precision, precision)
        report = opened.add(
            images,
            again=again,
            boxes=boxes,
            renew_boxes=renew_boxes,
            batch_size=batch_size,
            workers=n_workers(workers),
            reporter=ConsoleReporter(),
        )
    if as_json:
        print_json({"collection": str(collection), **added_record(report)})
    else:
        say(added_line(collection, report))
    if strict and report.encoding.skipped:
        raise typer.Exit(1)


def remove(
    collection: Folder,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES", help="Names as shown by a search, files, or whole folders."
        ),
    ],
    as_json: Json = False,
) -> None:
    """Remove pictures from a collection; their files stay.

    They disappear from search results at once, and stay out until `regionhash add` names their file
    or is run with --again. If any name is unknown, nothing is removed.

    \b
    Example:
      regionhash remove photos.collection holidays/2019 cat.jpg
    """
    from regionhash.collection import Collection

    with Collection.open(collection) as opened:
        removed, left = opened.remove(images), len(opened)
    if as_json:
        print_json({"collection": str(collection), "removed": removed, "pictures": left})
    else:
        say(f"{collection}: {removed} removed, {left} left")


def refresh(
    collection: Folder,
    remove_empty: Annotated[
        bool,
        typer.Option(
            "--remove-empty", help="Also remove the pictures of folders that are empty now."
        ),
    ] = False,
    strict: Strict = False,
    batch_size: BatchSize = 8,
    workers: Workers = None,
    device: Device = "auto",
    runtime: Runtime = "auto",
    as_json: Json = False,
) -> None:
    """Bring a collection up to date with its folders.

    Goes through everything that `index` and `add` were given: adds new pictures, re-encodes changed
    ones, follows moved files, and removes pictures whose file is gone. If a folder is empty or
    cannot be read, or a whole source is missing, like an unmounted disk, its pictures are kept.

    \b
    Example:
      regionhash refresh photos.collection
    """
    from regionhash.collection import Collection

    with Collection.open(collection, device=device, runtime=runtime) as opened:
        reports = opened.refresh(
            remove_empty=remove_empty,
            batch_size=batch_size,
            workers=n_workers(workers),
            reporter=ConsoleReporter(),
        )
    if as_json:
        print_json({"collection": str(collection), "added": [*map(added_record, reports)]})
    for report in () if as_json else reports:
        say(added_line(collection, report, f"{report.removed} removed"))
    if strict and any(report.encoding.skipped for report in reports):
        raise typer.Exit(1)


def check(
    collection: Folder,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Repair what can be repaired, and remove leftovers."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Check a collection's database, arrays and files.

    Exits with 1 if the collection itself is damaged. Files that are gone or have changed are
    listed; `refresh` updates them, and re-encodes pictures whose row is damaged.

    \b
    Example:
      regionhash check photos.collection
    """
    from dataclasses import asdict

    from regionhash.collection import check_folder

    report = check_folder(collection, repair=repair)
    if as_json:
        print_json(asdict(report))
    else:
        for line in (*report.repaired, *report.problems):
            say(line)
        for line, names in (
            ("its file is gone", report.missing),
            ("its file has changed", report.changed),
            ("its file cannot be accessed", report.unreadable),
            ("belongs to no picture; --repair removes it", report.orphans),
        ):
            for name in names:
                say(f"{name}: {line}")
        say(
            f"{collection}: {report.n_images} pictures, {len(report.problems)} problems, "
            f"{len(report.missing)} files gone, {len(report.changed)} changed"
        )
    if report.problems:
        raise typer.Exit(1)


def engine(
    action: Annotated[
        Literal["sync", "check", "drop"],
        typer.Argument(
            help="`sync` fills the engine with what it does not have yet, `check` compares all of "
            "it with the collection, `drop` removes what it has of it."
        ),
    ],
    collection: Folder,
    name: Annotated[str, typer.Option("--engine", metavar="ENGINE", help="See docs/engines.md.")],
    as_json: Json = False,
) -> None:
    """Fill, check or drop an engine that searches for a collection.

    It holds the codes of the collection too, and is searched in its place (docs/engines.md).

    The collection stays as it is; what comes to it later is found before the next `sync`, too.
    `check` exits with 1 if the engine has not what it should; `sync` mends that.

    \b
    Examples:
      regionhash engine sync photos.collection --engine sql
      regionhash search photos.collection --engine sql --query cup.jpg@10,20,40,50
      regionhash engine check photos.collection --engine sql
    """
    from regionhash.collection import Collection

    with Collection.open(collection, engine=name) as opened:
        searched_by = opened.engine()
        name = name if searched_by is None else searched_by.backend.place  # without a password
        if action == "drop":
            opened.drop_engine()
            record: dict[str, Any] = {}
            lines = [f"{name}: holds nothing of {collection} any more"]
        elif action == "sync":
            synced = opened.sync_engine(reporter=ConsoleReporter())
            record = synced._asdict()
            lines = [f"{name}: {synced.added} pictures added, {synced.removed} removed"]
        else:
            report = opened.check_engine()
            record = asdict(report)
            lines = [
                f"picture {row}: {line}"
                for rows, line in (
                    (report.missing, "missing in the engine, wholly or in part"),
                    (report.extra, "in the engine, but not in the collection"),
                    (report.different, "has other codes in the engine"),
                )
                for row in rows
            ]
            wrong = len(lines)
            if report.recall is not None:
                lines.append(f"{name}: finds {report.recall:.1%} of the regions that are nearest")
            lines.append(
                f"{name}: {report.pictures} pictures, {report.waiting} not there yet, {wrong} wrong"
            )
    if as_json:
        print_json({"collection": str(collection), "engine": name, **record})
    else:
        say("\n".join(lines))
    if action == "check" and not report.ok:
        raise typer.Exit(1)


def export(
    collection: Folder,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    as_json: Json = False,
) -> None:
    """Write the codes of a collection to one file, without the model.

    That is a Parquet file if its name ends in .parquet, which other programs read
    (docs/parquet.md), and a code file (HDF5) otherwise.

    \b
    Example:
      regionhash export photos.collection -o photos.h5
      regionhash export photos.collection -o photos.parquet
    """
    from regionhash.collection import Collection

    with Collection.open(collection) as opened:
        count = opened.export(output)
    if as_json:
        print_json({"codes": str(output), "pictures": count})
    else:
        say(f"{output}: {count} pictures")


def import_codes(
    collection: Annotated[
        Path,
        typer.Argument(
            metavar="COLLECTION", help="Folder of a collection; created if there is none."
        ),
    ],
    codes: Annotated[
        list[str],
        typer.Argument(
            metavar="CODES",
            help="Code files or Parquet files, as of `export`, of the same model; or folders of "
            "Parquet files, as of `encode --ray`. A Parquet file or folder may be a URL such as "
            "s3://bucket/shards.",
        ),
    ],
    as_json: Json = False,
) -> None:
    """Import code files or Parquet files into a collection.

    Nothing is encoded. A new collection gets a copy of the model that the first file names.

    \b
    Example:
      regionhash import photos.collection photos.h5
    """
    from regionhash.collection import Collection, is_collection

    if is_collection(collection):
        with Collection.open(collection) as opened:
            count = opened.import_codes(*codes)
    else:
        with Collection.of_code_file(collection, *codes) as opened:
            count = len(opened)
    if as_json:
        print_json({"collection": str(collection), "new": count})
    else:
        say(f"{collection}: {count} pictures of {' '.join(codes)} are new")


def _proposals(given: str | None) -> tuple[str | None, Path | None]:
    """What the regions are, and the file or folder that they come from, if any.

    A file whose name ends in "+windows" is meant by it if it exists.

    Raises:
        ValueError: it is none of the forms.
    """
    kind, _, place = (given or "").partition(":")
    if given in (None, "windows", "pyramid"):
        return given, None
    file, plus, windows = place.rpartition("+")
    joined = file and windows in ("windows", "pyramid") and not Path(place).exists()
    if kind in ("boxes", "onnx") and joined:
        return kind + plus + windows, Path(file)
    if kind in ("boxes", "onnx", "detector") and place:
        return kind, Path(place)
    if "/" not in given and not Path(given).exists():
        raise ValueError(
            "proposals must be windows, pyramid, boxes:FILE or onnx:FILE, either with +windows or "
            f"+pyramid after it, or detector:CHECKPOINT, got {given!r}"
        )
    return "detector", Path(given)


def _fit_line(fit: FitReport) -> str:
    def change(name: str) -> str:
        return f"{name} {getattr(fit.before, name):.3f} -> {getattr(fit.after, name):.3f}"

    parts = [change("balance"), change("correlation")]
    if fit.losses:
        parts.insert(0, f"loss per bit {fit.losses[0]:.3f} -> {fit.losses[-1]:.3f}")
    return f"fitted: {', '.join(parts)}"
