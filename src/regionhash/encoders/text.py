"""Words: the text tower of encoders that were trained on pictures and their captions.

A text becomes a vector in the space of the vectors of pictures. CLIP and SigLIP differ in what
surrounds the words:

- CLIP reads the token that ends the text, so padding, and the mask that hides it, change nothing.
- SigLIP reads the last of 64 tokens, padding included, and was trained on text in lower case.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regionhash.encoders.errors import EncoderError
from regionhash.files import strict_json
from regionhash.files.text import one_line, reason_of, shown
from regionhash.sessions import open_session
from regionhash.structures import Floats

TEXT_GRAPHS = ("onnx/text_model.onnx", "text_model.onnx")
"""Where repositories keep the graph of a text tower."""

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIGS = ("tokenizer_config.json", "special_tokens_map.json")

SPACES = {"image_embeds": "text_embeds", "pooler_output": "pooler_output"}
"""By output of the graph of pictures: the output of the graph of words that has its space."""

_MAX_LENGTH = 4096
_TYPES = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}


@dataclass(frozen=True)
class TextLayout:
    """How words are fed to a graph, and its output read.

    Attributes:
        ids: name of the input (1, length) of token numbers.
        mask: name of the input that says which tokens are words, "" without one.
        output: name of the output that is the vector (1, N).
        n_vector: N.
        length: tokens of a text, with padding; longer ones are cut.
        pad: number of the token that fills the rest.
        side: which side it fills: "left" or "right".
        pads_read: whether the padding is read like words.
        lowercase: whether the text is made lower case.
    """

    ids: str
    mask: str
    output: str
    n_vector: int
    length: int
    pad: int
    side: str
    pads_read: bool
    lowercase: bool

    def to_record(self) -> dict[str, Any]:
        """As JSON stores it."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> TextLayout:
        """The inverse of `to_record`. Raises ValueError, without a file, for anything else."""
        flags = [record.get("pads_read"), record.get("lowercase")]
        layout = cls(
            ids=strict_json.field(record, "ids", str),
            mask=strict_json.field(record, "mask", str),
            output=strict_json.field(record, "output", str),
            n_vector=strict_json.whole_number(record, "n_vector", 1, 65_536),
            length=strict_json.whole_number(record, "length", 1, _MAX_LENGTH),
            pad=strict_json.whole_number(record, "pad", 0, 1 << 31),
            side=strict_json.field(record, "side", str),
            pads_read=flags[0] is True,
            lowercase=flags[1] is True,
        )
        if set(record) != set(asdict(layout)) or any(type(flag) is not bool for flag in flags):
            raise EncoderError(f"text must have {', '.join(asdict(layout))}")
        if layout.side not in ("left", "right"):
            raise EncoderError(f"side must be left or right, got {shown(layout.side)}")
        return layout


class TextEncoder:
    """A text tower; see the module. Threads may share it.

    Graph and tokenizer are opened when they are first needed.

    Args:
        graph: its graph, or the file.
        tokenizer: the content of a tokenizer.json, or the file.
        layout: of inputs and output.
        place: the graph, for messages.
        session: of the graph, if it is open already.
    """

    def __init__(
        self,
        graph: bytes | Path,
        tokenizer: bytes | Path,
        layout: TextLayout,
        place: str,
        session: Any = None,
    ) -> None:
        self.graph, self.tokenizer, self.layout = graph, tokenizer, layout
        self.n_vector = layout.n_vector
        self._place = place
        self._lock = threading.Lock()
        self._session = session
        self._tokenizer: Any = None

    def tokens(self, text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The numbers of a text's tokens (length,) and 1 for each that is no padding.

        Raises:
            EncoderError: the tokenizer is damaged, or the package tokenizers is missing.
        """
        with self._lock:
            if self._tokenizer is None:
                opened = open_tokenizer(self.tokenizer, self._place)
                opened.enable_truncation(self.layout.length)
                opened.enable_padding(
                    direction=self.layout.side, pad_id=self.layout.pad, length=self.layout.length
                )
                self._tokenizer = opened
        if self.layout.lowercase:
            from tokenizers.normalizers import Lowercase

            text = Lowercase().normalize_str(text)
        try:
            found = self._tokenizer.encode(text)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of the package is no Exception
            raise EncoderError(f"{self._place}: tokenizer: {reason_of(error)}") from None
        return np.array(found.ids, np.int64), np.array(found.attention_mask, np.int64)

    def vectors(self, texts: Sequence[str]) -> Floats:
        """The vectors (N, n_vector) float32 of N texts, in the space of the pictures' vectors.

        Raises:
            EncoderError: see `tokens`; or the graph cannot be run.
        """
        with self._lock:
            if self._session is None:
                self._session = open_session(self.graph, self._place, EncoderError)
        layout = self.layout
        kinds = {x.name: _TYPES[x.type] for x in self._session.get_inputs() if x.type in _TYPES}
        wanted = {layout.ids, layout.mask} - {""}
        if wanted - kinds.keys() or layout.output not in [
            x.name for x in self._session.get_outputs()
        ]:
            raise EncoderError(f"{self._place}: its text graph has other inputs or outputs")
        vectors = np.empty((len(texts), self.n_vector), np.float32)
        for row, text in enumerate(texts):
            ids, mask = self.tokens(text)
            inputs = {layout.ids: ids[None].astype(kinds[layout.ids])}
            if layout.mask:
                read = np.ones_like(mask) if layout.pads_read else mask
                inputs[layout.mask] = read[None].astype(kinds[layout.mask])
            found = run_text(self._session, inputs, layout.output, self._place)
            if found.shape[-1] != self.n_vector:
                raise EncoderError(
                    f"{self._place}: its words have {found.shape[-1]} numbers, not {self.n_vector}"
                )
            vectors[row] = found
        return vectors


def open_tokenizer(content: bytes | Path, place: str) -> Any:
    """A tokenizer of the package tokenizers. Raises EncoderError."""
    try:
        from tokenizers import Tokenizer

        return Tokenizer.from_buffer(
            content if isinstance(content, bytes) else content.read_bytes()
        )
    except ImportError as error:
        raise EncoderError(f"{place}: words need tokenizers: pip install regionhash") from error
    except Exception as error:  # whatever its parser runs into
        raise EncoderError(
            f"{place}: {TOKENIZER_FILE} is damaged ({one_line(str(error))})"
        ) from error


def run_text(
    session: Any, inputs: dict[str, NDArray[Any]], output: str, place: str
) -> NDArray[np.float32]:
    """An output (N,) of a graph for one text. Raises EncoderError."""
    try:
        (found,) = session.run([output], inputs)
    except Exception as error:  # whatever its operators run into
        reason = one_line(str(error).partition("\n")[0])
        raise EncoderError(f"{place}: cannot be run on words ({reason})") from error
    if found.ndim != 2 or len(found) != 1 or found.dtype != np.float32:
        raise EncoderError(f"{place}: its output {one_line(output)} is no vector")
    if not np.isfinite(found).all():
        raise EncoderError(f"{place}: gives values that are no numbers for a text")
    vector: NDArray[np.float32] = found[0]
    return vector


def find_text(
    graph: bytes,
    tokenizer: bytes,
    config: dict[str, Any],
    tokens: dict[str, Any],
    vector_output: str,
    n_vector: int,
    place: str,
) -> TextEncoder:
    """The text tower that belongs to a graph of pictures.

    Args:
        graph: of words.
        tokenizer: the content of its tokenizer.json.
        config: the content of config.json.
        tokens: the content of tokenizer_config.json and special_tokens_map.json.
        vector_output: name of the output of the graph of pictures that is its vector.
        n_vector: length of that vector.
        place: the graph of words, for messages.

    Raises:
        EncoderError: it is no graph of words, in another space, or its padding is not known.
    """
    session = open_session(graph, place, EncoderError)
    given = {one_line(x.name): x for x in session.get_inputs()}
    wrong = set(given) - {"input_ids", "attention_mask"}
    if "input_ids" not in given or wrong or any(x.type not in _TYPES for x in given.values()):
        raise EncoderError(
            f"{place}: must have inputs input_ids and attention_mask, whole numbers; it has "
            + (", ".join(f"{name} {x.type}" for name, x in given.items()) or "none")
        )
    output = SPACES.get(vector_output, "")
    outputs = [x.name for x in session.get_outputs()]
    if output not in outputs:
        raise EncoderError(
            f"{place}: its outputs {', '.join(map(one_line, outputs))} are not in the space of "
            f"the pictures' {one_line(vector_output) or 'map'}"
        )
    is_clip = output == "text_embeds"
    opened = open_tokenizer(tokenizer, place)
    layout = TextLayout(
        ids="input_ids",
        mask="attention_mask" if "attention_mask" in given else "",
        output=output,
        n_vector=n_vector,
        length=_length(given["input_ids"], config, tokens, place),
        pad=_pad(opened, tokens, is_clip, place),
        side=tokens.get("padding_side") or (opened.padding or {}).get("direction") or "right",
        pads_read=not is_clip,
        lowercase=not is_clip,  # CLIP's tokenizer does
    )
    try:
        layout = TextLayout.from_record(layout.to_record())
    except ValueError as error:
        raise EncoderError(f"{place}: {reason_of(error)}") from error
    encoder = TextEncoder(graph, tokenizer, layout, place, session)
    ids, mask = encoder.tokens("a picture")
    inputs = {name: (ids if name == "input_ids" else mask)[None] for name in given}
    inputs = {name: x.astype(_TYPES[given[name].type]) for name, x in inputs.items()}
    found = run_text(session, inputs, output, place)
    if len(found) != n_vector:
        raise EncoderError(
            f"{place}: its vectors have {len(found)} numbers, those of pictures {n_vector}"
        )
    return encoder


def _length(given: Any, config: dict[str, Any], tokens: dict[str, Any], place: str) -> int:
    """Tokens of a text, with padding."""
    inner = config.get("text_config")
    length = inner.get("max_position_embeddings") if isinstance(inner, dict) else None
    for known in (given.shape[-1:] or [None])[0], length, tokens.get("model_max_length"):
        if type(known) is int and 1 <= known <= _MAX_LENGTH:
            return known
    raise EncoderError(
        f"{place}: how long a text may be is not known; model_max_length in a "
        "tokenizer_config.json beside it says it"
    )


def _pad(tokenizer: Any, tokens: dict[str, Any], is_clip: bool, place: str) -> int:
    """Number of the token of padding; CLIP, which does not read it, may end the text again."""
    for name in ("pad_token", "eos_token") if is_clip else ("pad_token",):
        token = tokens.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        number = tokenizer.token_to_id(token) if isinstance(token, str) else None
        if number is not None:
            return int(number)
    raise EncoderError(
        f"{place}: its token of padding is not known; pad_token in a tokenizer_config.json beside "
        "it names one"
    )
