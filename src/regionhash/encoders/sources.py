"""Where encoders come from: files, the Hugging Face hub, timm, torchvision, other packages."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from regionhash.encoders import hub
from regionhash.encoders.encoder import Encoder, OnnxEncoder
from regionhash.encoders.errors import EncoderError
from regionhash.encoders.graph_file import read_graph
from regionhash.encoders.layout import Hints, find_layout
from regionhash.encoders.preprocessing import Preprocessing, side_pair
from regionhash.encoders.stored import RECORD_FILE, Resolved, check_encoder
from regionhash.encoders.text import TEXT_GRAPHS, TOKENIZER_CONFIGS, TOKENIZER_FILE, find_text
from regionhash.files import strict_json
from regionhash.files.text import one_line, read_bytes, reason_of, refusing, shown
from regionhash.reporter import SILENT, Reporter
from regionhash.sessions import open_session

DEFAULT_ENCODER = "hf:onnx-community/dinov2-small"
"""DINOv2, the small one (Apache-2.0): features of objects that hold without training."""

MAX_SPEC = 4500
"""Characters of a spec: the longest path of Linux, 4096, and what is before it."""

ENTRY_POINTS = "regionhash.encoders"
"""Group of the entry points with which other packages offer encoders.

The entry point SCHEME is a function: given REST of "SCHEME:REST", it returns an `Encoder`.
"""


def resolve(spec: str, reporter: Reporter = SILENT, *, words: bool = True) -> Resolved:
    """The encoder that a spec names, ready to run.

    Args:
        spec: onnx:FILE or onnx:FOLDER, hf:NAME[@REVISION] or hf:FOLDER, timm:NAME[=FILE],
            torchvision:NAME[=FILE], or SCHEME:REST of another package; see docs/encoders.md.
        reporter: is told what is fetched, and what had to be assumed.
        words: whether its text tower is taken too, if it has one; it may be as large as the rest.

    Raises:
        EncoderError: there is no such encoder, or it cannot be used: one line.
    """
    if len(spec) > MAX_SPEC:
        raise EncoderError(
            f"encoder {shown(spec)}: must have at most {MAX_SPEC:,} characters, got {len(spec):,}"
        )
    scheme, _, rest = spec.partition(":")
    if not rest:
        raise EncoderError(
            f"encoder {shown(spec)}: must be onnx:FILE, hf:NAME, timm:NAME or torchvision:NAME"
        )
    if scheme in SCHEMES:
        return SCHEMES[scheme](rest, reporter, words)
    return of_package(spec, f"encoder {one_line(spec)}")


def _of_file(rest: str, reporter: Reporter, words: bool) -> Resolved:
    """A graph, or a folder: a stored encoder, or one in the hub's layout."""
    path = Path(rest)
    if path.is_dir():
        if (path / RECORD_FILE).exists():
            stored = check_encoder(path)
            return stored if words else stored.without_words()
        return _of_folder(f"onnx:{rest}", path, reporter, words)
    beside = path.parent.parent if path.parent.name == "onnx" else path.parent
    return _of_graph(f"onnx:{rest}", path, [path.parent, beside], reporter)


def _of_hub(rest: str, reporter: Reporter, words: bool) -> Resolved:
    """A repository of the hub, or a folder in its layout."""
    if Path(rest).is_dir():
        return _of_folder(f"hf:{rest}", Path(rest), reporter, words)
    also = (*TEXT_GRAPHS, TOKENIZER_FILE, *TOKENIZER_CONFIGS) if words else ()
    fetched = hub.fetch(rest, reporter, also=also)
    spec = f"hf:{fetched.name}@{fetched.revision}"
    origin = {"revision": fetched.revision, "licence": fetched.licence}
    return _of_folder(spec, fetched.folder, reporter, words, **origin)


def _of_folder(spec: str, folder: Path, reporter: Reporter, words: bool, **origin: str) -> Resolved:
    """An encoder in the hub's layout."""
    graph = next((folder / name for name in hub.GRAPHS if (folder / name).is_file()), None)
    if graph is None:
        raise EncoderError(f"{folder}: has no {', '.join(hub.GRAPHS[:-1])} or {hub.GRAPHS[-1]}")
    found = _of_graph(spec, graph, [folder], reporter, folder=folder, **origin)
    text_graph = next((folder / name for name in TEXT_GRAPHS if (folder / name).is_file()), None)
    if not words or text_graph is None:
        return found
    with refusing(f"{text_graph}: no words without {TOKENIZER_FILE}", EncoderError):
        tokenizer = read_bytes(folder / TOKENIZER_FILE, "the tokenizer")
    tokens: dict[str, Any] = {}
    for name in reversed(TOKENIZER_CONFIGS):
        tokens |= _read(folder / name) or {}
    layout = found.identity["layout"]
    text = find_text(
        read_graph(text_graph),
        tokenizer,
        _read(folder / "config.json") or {},
        tokens,
        layout["vector_output"],
        layout["n_vector"],
        str(text_graph),
    )
    return found.with_words(text)


def _of_graph(
    spec: str, path: Path, folders: list[Path], reporter: Reporter, **origin: Any
) -> Resolved:
    """A graph with the configurations in the first of the folders that has any."""
    graph = read_graph(path)
    preprocessing = hints = None
    for folder in folders:
        preprocessing = preprocessing or _preprocessing_in(folder)
        hints = hints or _hints_in(folder)
    found = encoder_of(
        spec, graph, preprocessing or Preprocessing(), hints or Hints(), str(path), **origin
    )
    if preprocessing is None:
        reporter.note(
            f"{path}: no preprocessor_config.json beside it; pixels are scaled to [0, 1] and "
            "normalised with ImageNet's mean and standard deviation"
        )
    return found


def encoder_of(
    spec: str, graph: bytes, preprocessing: Preprocessing, hints: Hints, place: str, **origin: Any
) -> Resolved:
    """An encoder that is a graph, whose layout is found by running it.

    Raises:
        EncoderError: it is no graph of an image encoder.
    """
    if preprocessing.size is not None:
        hints = Hints((preprocessing.size, *hints.sizes), hints.patch, hints.prefix)
    session = open_session(graph, place, EncoderError)
    layout = find_layout(session, hints, place)
    encoder = OnnxEncoder(graph, preprocessing, layout, place, session)
    return Resolved.of_graph(spec, graph, encoder, **origin)


def _preprocessing_in(folder: Path) -> Preprocessing | None:
    """What a folder says of an encoder's input, in transformers' files or timm's."""
    for name, keys, parse in (
        ("preprocessor_config.json", (), Preprocessing.of_transformers),
        ("processor_config.json", ("image_processor",), Preprocessing.of_transformers),
        ("config.json", ("pretrained_cfg",), Preprocessing.of_timm),
    ):
        config: Any = _read(folder / name)
        for key in keys:
            config = config and config.get(key)
        if isinstance(config, dict):
            with refusing(str(folder / name), EncoderError):
                return parse(config)
    return None


def _hints_in(folder: Path) -> Hints | None:
    """What the config.json in a folder says of a graph."""
    path = folder / "config.json"
    config = _read(path)
    if config is None:
        return None
    inner = config.get("vision_config")
    config = inner if isinstance(inner, dict) else config
    size, patch = config.get("image_size"), config.get("patch_size")
    registers = config.get("num_register_tokens")
    with refusing(str(path), EncoderError):
        sizes = () if size is None else (side_pair(size, "image_size"),)
        sides = None if patch is None else side_pair(patch, "patch_size")
        if sides and sides[0] != sides[1]:
            raise ValueError(f"patch_size must be square, got {shown(patch)}")
        return Hints(sizes, sides and sides[0], 1 + registers if type(registers) is int else None)


def _read(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, if the file is there."""
    if not path.exists():
        return None
    with refusing(str(path), EncoderError):
        return strict_json.read_object(path)


def _of_timm(rest: str, reporter: Reporter, words: bool) -> Resolved:
    from regionhash.encoders.exported import of_timm

    return of_timm(rest, reporter)


def _of_torchvision(rest: str, reporter: Reporter, words: bool) -> Resolved:
    from regionhash.encoders.exported import of_torchvision

    return of_torchvision(rest, reporter)


def of_package(spec: str, place: str) -> Resolved:
    """The encoder of another package.

    Args:
        spec: SCHEME:REST.
        place: for messages.

    Raises:
        EncoderError: no installed package offers SCHEME, or its encoder cannot be made.
    """
    scheme, _, rest = spec.partition(":")
    found = list(entry_points(group=ENTRY_POINTS, name=scheme))
    if not found:
        known = ", ".join(sorted({*SCHEMES, *entry_points(group=ENTRY_POINTS).names}))
        raise EncoderError(
            f"{place}: no installed package offers encoders {shown(scheme + ':')}; known: {known}"
        )
    try:
        encoder: Encoder = found[0].load()(rest)
    except Exception as error:  # of another package
        raise EncoderError(f"{place}: {one_line(found[0].value)}: {reason_of(error)}") from error
    missing = [name for name in _PROTOCOL if not hasattr(encoder, name)]
    wrong = (
        []
        if missing
        else [name for name, fits in _FITTING.items() if not fits(getattr(encoder, name))]
    )
    if missing or wrong or isinstance(encoder, type):
        reason = f"it lacks {', '.join(missing)}" if missing else "it is a class"
        reason = f"{', '.join(wrong)} of another form" if wrong else reason
        raise EncoderError(f"{place}: {one_line(found[0].value)} gives no encoder: {reason}")
    return Resolved(spec, encoder, {"spec": spec})


_PROTOCOL = (
    "n_channels", "n_vector", "gives_map", "stride", "pooling", "fixed_size",
    "prepare", "map", "vectors",
)  # fmt: skip

_FITTING: dict[str, Callable[[Any], bool]] = {
    "n_channels": lambda x: type(x) is int and x >= 0,
    "n_vector": lambda x: type(x) is int and x >= 0,
    "stride": lambda x: type(x) is int and x >= 1,
    "pooling": lambda x: x in ("max", "mean"),
    "fixed_size": lambda x: x is None or len(x) == 2,
}

SCHEMES: dict[str, Callable[[str, Reporter, bool], Resolved]] = {
    "onnx": _of_file,
    "hf": _of_hub,
    "timm": _of_timm,
    "torchvision": _of_torchvision,
}
"""What is before the colon of a spec."""
