"""Encoders on the Hugging Face hub: their files, fetched once into its cache."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regionhash.encoders.errors import EncoderError
from regionhash.files.text import one_line
from regionhash.reporter import Reporter

GRAPHS = ("onnx/vision_model.onnx", "onnx/model.onnx", "vision_model.onnx", "model.onnx")
"""Where repositories keep the graph of an image encoder, the likeliest first."""

CONFIGS = ("preprocessor_config.json", "processor_config.json", "config.json")

_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Fetched:
    """A repository's files on this machine.

    Attributes:
        folder: has them under their names.
        name: of the repository.
        revision: the commit.
        licence: its identifier, "" if unknown.
    """

    folder: Path
    name: str
    revision: str
    licence: str


def fetch(spec: str, reporter: Reporter, *, also: tuple[str, ...] = ()) -> Fetched:
    """The files of an encoder on the hub, fetched unless they are in the cache.

    $HF_ENDPOINT, $HF_HOME, $HF_TOKEN and $HF_HUB_OFFLINE are read as by other programs. If the hub
    cannot be reached, what is in the cache is taken.

    Args:
        spec: NAME or NAME@REVISION.
        reporter: is told name, size, licence and revision before anything is fetched.
        also: other files that are fetched if the repository has them, with those whose names start
            with theirs.

    Raises:
        EncoderError: no such repository or revision, no graph in it, access is refused, or it is
            neither in the cache nor can the hub be reached.
    """
    if not _NAME.fullmatch(spec):
        raise EncoderError(f"hf:{one_line(spec)}: must be hf:NAME or hf:NAME@REVISION")
    name, _, revision = spec.partition("@")
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise EncoderError(f"hf:{name}: needs huggingface_hub: pip install regionhash") from error

    place = f"hf:{spec}"
    try:
        info = huggingface_hub.HfApi().model_info(
            name, revision=revision or None, files_metadata=True
        )
        return _fetched(name, info, also, reporter)
    except errors.GatedRepoError as error:
        raise EncoderError(
            f"{place}: access is restricted; accept its terms at its page, then set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise EncoderError(f"{place}: the repository has no revision {revision}") from error
    except errors.RepositoryNotFoundError as error:
        raise EncoderError(
            f"{place}: no such repository, or a private one; for those, set HF_TOKEN"
        ) from error
    except errors.HFValidationError as error:
        raise EncoderError(f"{place}: {one_line(str(error))}") from error
    except EncoderError:
        raise
    except Exception as error:  # of its HTTP library, which changes with versions
        cached = _cached(name, revision)
        if cached is None:
            raise EncoderError(_unreachable(place, error)) from error
        reporter.note(
            f"{place}: the hub cannot be reached; revision {cached.revision} is in the cache"
        )
        return cached


def _fetched(name: str, info: Any, also: tuple[str, ...], reporter: Reporter) -> Fetched:
    import huggingface_hub
    from tqdm import tqdm

    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    graph = next((path for path in GRAPHS if path in sizes), None)
    if graph is None:
        raise EncoderError(
            f"hf:{name}: has no ONNX file ({' or '.join(GRAPHS[:2])}); repositories of "
            "onnx-community have exported ones, and `optimum-cli export onnx` makes one"
        )
    card = info.card_data
    licence = str((card and card.get("license")) or "")
    starts = tuple(path for path in also if path in sizes)
    # The graph comes last, so that a cache that has it is complete.
    wanted = [path for path in sizes if path in CONFIGS or path.startswith(starts)]
    wanted += [path for path in sizes if path.startswith(graph) and path != graph]
    wanted.append(graph)
    total = sum(sizes[path] for path in wanted)
    reporter.note(
        f"hf:{name}: {total / 1e6:.1f} MB, licence {licence or 'unknown'}, revision {info.sha}"
    )
    done = 0

    class Bar(tqdm):  # type: ignore[misc]
        """Reports the bytes of all files."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            nonlocal done
            done += int(n or 0)
            reporter.progress(min(done, total) // 1_000_000, total // 1_000_000)
            return None

    with reporter.stage("fetching MB"):
        for path in wanted:
            found = huggingface_hub.hf_hub_download(name, path, revision=info.sha, tqdm_class=Bar)
    folder = Path(found).parents[len(Path(graph).parts) - 1]
    return Fetched(folder, name, info.sha, licence)


def _cached(name: str, revision: str) -> Fetched | None:
    """What the cache has of a repository."""
    import huggingface_hub

    for graph in GRAPHS:
        found = huggingface_hub.try_to_load_from_cache(name, graph, revision=revision or None)
        if isinstance(found, str):
            folder = Path(found).parents[len(Path(graph).parts) - 1]
            return Fetched(folder, name, folder.name, "")
    return None


def _unreachable(place: str, error: Exception) -> str:
    """Why a repository could not be fetched, and what to do, in one line."""
    reason = one_line(str(error).partition("\n")[0]) or type(error).__name__
    if type(error).__name__ == "OfflineModeIsEnabled":
        reason = "HF_HUB_OFFLINE is set"
    return (
        f"{place}: not in the cache, and the hub cannot be reached ({reason}); on a machine that "
        f"can, run `regionhash fetch {place} --output FOLDER`, and pass onnx:FOLDER here"
    )
