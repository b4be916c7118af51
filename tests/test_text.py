"""Words: their vectors are those of the networks and tokenizers of transformers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from encoder_cases import SQUARE, Encoded, clip_config, export, siglip_config, write_graph
from regionhash.encoders import EncoderError, check_encoder, read_encoder, resolve

CLOSE = {"rtol": 0, "atol": 2e-5}
"""Tolerance between ONNX Runtime and torch; the values are of order 1."""

TEXTS = [
    "a red backpack",
    "",
    "A Red BACKPACK",
    "two dogs, one cat; naïve Ünïcode straße İ \u03a3\u03a3",
    "<pad> the end<|endoftext|> of it",
    "word " * 200,
    "a\nb\tc",
]
CORPUS = ["a red backpack on a bench", "two dogs and one cat", "the end of the road, at last"]


def gemma_tokenizer(side):
    """As that of SigLIP 2, small, and its files."""
    trained = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(
        vocab_size=150, special_tokens=["<pad>", "<eos>", "<bos>", "<unk>"], show_progress=False
    )
    trained.train_from_iterator(CORPUS, trainer)
    trained.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    config = {"pad_token": "<pad>", "eos_token": {"content": "<eos>"}, "padding_side": side}
    return trained, config | {"model_max_length": 10**30}


def clip_tokenizer():
    """As that of CLIP, small, and its configuration."""
    start, end = "<|startoftext|>", "<|endoftext|>"
    made = Tokenizer(models.BPE(unk_token=end, end_of_word_suffix="</w>"))
    made.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=[start, end],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    made.train_from_iterator(CORPUS, trainer)
    made.post_processor = processors.RobertaProcessing((end, 1), (start, 0), False, False)
    return made, {"pad_token": end, "bos_token": start, "eos_token": end, "model_max_length": 77}


class Words:
    """A tiny encoder with words, beside its own networks."""

    def __init__(self, name, folder, side="right"):
        self.pictures = Encoded(name, folder)
        self.folder = folder
        torch.manual_seed(1)
        if name == "clip":
            self.tokenizer, self.config = clip_tokenizer()
            network = transformers.CLIPTextModelWithProjection(clip_config().text_config)
            self.output, self.names, self.length = (
                "text_embeds",
                ("input_ids", "attention_mask"),
                77,
            )
        else:
            self.tokenizer, self.config = gemma_tokenizer(side)
            network = transformers.SiglipTextModel(siglip_config().text_config)
            self.output, self.names, self.length = "pooler_output", ("input_ids",), 64
        with torch.no_grad():
            for weight in network.parameters():
                weight.copy_(torch.randn_like(weight) * (0.2 if weight.ndim > 1 else 0.5))
        self.network = network.eval()
        example = torch.ones(1, self.length, dtype=torch.int64)
        export(
            network,
            folder / "onnx" / "text_model.onnx",
            dict.fromkeys(self.names, example),
            {name: {0: "batch_size", 1: "sequence_length"} for name in self.names},
            (self.output,),
        )
        self.tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps(self.config))

    def reference(self, text):
        """Tokens and vector, as transformers makes them."""
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(self.folder / "tokenizer.json"),
            **{
                key: value["content"] if isinstance(value, dict) else value
                for key, value in self.config.items()
            },
        )
        if self.output == "pooler_output":  # as its Siglip2Tokenizer does
            backend = tokenizer.backend_tokenizer
            backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), backend.normalizer])
        found = tokenizer(
            [text],
            padding="max_length",
            max_length=self.length,
            truncation=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            outputs = self.network(**{name: found[name] for name in self.names})
        return found["input_ids"][0].numpy(), outputs[self.output].numpy()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    kept = {}

    def make(name, side="right"):
        if (name, side) not in kept:
            folder = tmp_path_factory.mktemp(name) / name
            kept[name, side] = Words(name, folder, side)
        return kept[name, side]

    return make


@pytest.fixture
def siglip(made, tmp_path):
    """A copy of the folder of SigLIP 2, to be changed."""
    return Path(shutil.copytree(made("siglip2").folder, tmp_path / "siglip"))


def refusal(folder):
    with pytest.raises(EncoderError) as caught:
        resolve(f"onnx:{folder}")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "side"), [("clip", "right"), ("siglip2", "right"), ("siglip2", "left")]
)
def test_words_become_what_transformers_makes_of_them(made, name, side):
    case = made(name, side)
    resolved = resolve(f"onnx:{case.folder}")
    text = resolved.text
    assert text.n_vector == resolved.encoder.n_vector
    for words in TEXTS:
        ids, vector = case.reference(words)
        np.testing.assert_array_equal(text.tokens(words)[0], ids)
        np.testing.assert_allclose(text.vectors([words]), vector, **CLOSE)
    together = text.vectors(TEXTS)
    assert together.shape == (len(TEXTS), text.n_vector) and together.dtype == np.float32
    np.testing.assert_array_equal(together[3:4], text.vectors(TEXTS[3:4]))
    assert len({row.tobytes() for row in together}) >= len(TEXTS) - 2
    assert text.vectors([]).shape == (0, text.n_vector)


def test_capital_letters_do_not_count(made):
    for name in ("clip", "siglip2"):
        text = resolve(f"onnx:{made(name).folder}").text
        first, _, second = text.vectors(TEXTS[:3])
        np.testing.assert_array_equal(first, second)


def test_words_are_stored_with_their_encoder(made, tmp_path):
    for name in ("clip", "siglip2"):
        first = resolve(f"onnx:{made(name).folder}")
        folder = tmp_path / name
        first.write(folder)
        assert sorted(path.name for path in folder.iterdir()) == [
            "encoder.json",
            "encoder.onnx",
            "text.onnx",
            "tokenizer.json",
        ]
        check_encoder(folder)
        found = read_encoder(folder)
        assert found.identity == first.identity and found.n_bytes == first.n_bytes
        np.testing.assert_array_equal(found.text.vectors(TEXTS), first.text.vectors(TEXTS))
        found.write(tmp_path / "again")
        assert (tmp_path / "again" / "encoder.json").read_bytes() == (
            folder / "encoder.json"
        ).read_bytes()


def test_words_are_left_out_when_they_are_not_wanted(made, tmp_path):
    with_words = resolve(f"onnx:{made('clip').folder}")
    without = resolve(f"onnx:{made('clip').folder}", words=False)
    assert without.text is None
    assert with_words.identity == without.identity | {"text": with_words.identity["text"]}
    without.write(tmp_path / "stored")
    assert read_encoder(tmp_path / "stored").text is None


def test_words_and_pictures_have_vectors_of_one_space(made):
    case = made("clip")
    resolved = resolve(f"onnx:{case.folder}")
    pixels, _ = resolved.encoder.prepare(SQUARE, 64)
    (picture,), (words,) = resolved.encoder.vectors([pixels]), resolved.text.vectors(["a dog"])
    _, reference = case.reference("a dog")
    scaled = resolved.encoder.preprocessing.scaled(pixels)[None]
    wanted = case.pictures.reference(scaled)["image_embeds"][0] @ reference[0]
    np.testing.assert_allclose(picture @ words, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", None, "no words without tokenizer.json: "),
        ("tokenizer.json", "{}", "tokenizer.json is damaged ("),
        ("tokenizer.json", "no json", "tokenizer.json is damaged ("),
        ("tokenizer_config.json", "[]", "tokenizer_config.json: must be an object"),
        ("tokenizer_config.json", None, "its token of padding is not known; pad_token in"),
        ("tokenizer_config.json", '{"pad_token": "<x>"}', "its token of padding is not known"),
        (
            "tokenizer_config.json",
            '{"pad_token": "<pad>", "padding_side": "top"}',
            "side must be left or right, got 'top'",
        ),
        (
            "tokenizer_config.json",
            '{"pad_token": "<pad>", "padding_side": 7}',
            "side must be text, got 7",
        ),
        ("config.json", '{"patch_size": 16}', "how long a text may be is not known"),
        ("onnx/text_model.onnx", "no graph", "text_model.onnx: not a readable graph ("),
    ],
)
def test_words_that_lack_something_are_one_line(siglip, name, content, message):
    if content is None:
        (siglip / name).unlink()
    else:
        (siglip / name).write_text(content)
    assert message in refusal(siglip)
    assert resolve(f"onnx:{siglip}", words=False).text is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "g (float[B,N] input_ids) => (float[B,N] pooler_output)"
            "{ pooler_output = Relu(input_ids) }",
            "must have inputs input_ids and attention_mask, whole numbers; it has input_ids tensor",
        ),
        (
            "g (int64[B,N] words) => (float[B,N] pooler_output)"
            "{ pooler_output = Cast<to=1>(words) }",
            "it has words tensor(int64)",
        ),
        (
            "g (int64[B,N] input_ids, int64[B,N] position_ids) => (float[B,N] pooler_output)"
            "{ a = Add(input_ids, position_ids) pooler_output = Cast<to=1>(a) }",
            "it has input_ids tensor(int64), position_ids tensor(int64)",
        ),
        (
            "g (int64[B,N] input_ids) => (float[B,N] text_embeds)"
            "{ text_embeds = Cast<to=1>(input_ids) }",
            "its outputs text_embeds are not in the space of the pictures' pooler_output",
        ),
        (
            "g (int64[B,N] input_ids) => (float[B,N] pooler_output)"
            "{ pooler_output = Cast<to=1>(input_ids) }",
            "its vectors have 64 numbers, those of pictures 32",
        ),
        (
            "g (int64[B,N] input_ids) => (float[N] pooler_output) <int64[1] a = {0}>"
            "{ f = Cast<to=1>(input_ids) pooler_output = ReduceMean<keepdims=0>(f, a) }",
            "its output pooler_output is no vector",
        ),
        (
            "g (int64[B,N] input_ids) => (float[B,N] pooler_output)"
            "{ f = Cast<to=1>(input_ids) m = Neg(f) k = Sub(m, f) pooler_output = Sqrt(k) }",
            "gives values that are no numbers for a text",
        ),
        (
            "g (int64[B,N] input_ids) => (float[B,M] pooler_output) <int64[2] s = {7, 3}>"
            "{ f = Cast<to=1>(input_ids) pooler_output = Reshape(f, s) }",
            "cannot be run on words (",
        ),
    ],
)
def test_a_graph_that_is_not_of_its_words_is_one_line(siglip, text, message):
    path = write_graph(siglip / "onnx" / "text_model.onnx", text)
    found = refusal(siglip)
    assert found.startswith(f"{path}: ") and message in found


def test_a_mask_is_ignored_by_siglip(siglip):
    text = (
        "g (int64[B,64] input_ids, int64[B,64] attention_mask) => (float[B,32] pooler_output)"
        "<int64[1] a = {0}, int64[1] c = {32}, int64[1] d = {1}>"
        "{ f = Cast<to=1>(attention_mask) pooler_output = Slice(f, a, c, d) }"
    )
    write_graph(siglip / "onnx" / "text_model.onnx", text)
    assert resolve(f"onnx:{siglip}").text.vectors(["a"]).tolist() == [[1.0] * 32]


def test_the_mask_of_clip_hides_the_padding(made, tmp_path):
    folder = Path(shutil.copytree(made("clip").folder, tmp_path / "clip"))
    text = (
        "g (int64[B,77] input_ids, int64[B,77] attention_mask) => (float[B,24] text_embeds)"
        "<int64[1] a = {0}, int64[1] c = {24}, int64[1] d = {1}>"
        "{ f = Cast<to=1>(attention_mask) text_embeds = Slice(f, a, c, d) }"
    )
    write_graph(folder / "onnx" / "text_model.onnx", text)
    encoder = resolve(f"onnx:{folder}").text
    n_words = len(made("clip").tokenizer.encode("a red dog").ids)
    assert encoder.vectors(["a red dog"]).tolist() == [[1.0] * n_words + [0.0] * (24 - n_words)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 0}, "length must be in [1, 4096], got 0"),
        ({"side": "top"}, "side must be left or right, got 'top'"),
        ({"lowercase": 1}, "text must have ids, mask, output"),
        ({"more": 1}, "text must have ids, mask, output"),
        ({"pad": None}, "pad must be a whole number, got None"),
    ],
)
def test_a_damaged_record_of_words_is_one_line(made, tmp_path, change, message):
    folder = tmp_path / "stored"
    resolve(f"onnx:{made('siglip2').folder}").write(folder)
    record = json.loads((folder / "encoder.json").read_text())
    record["text"]["layout"] |= change
    (folder / "encoder.json").write_text(json.dumps(record))
    assert refusal(folder).startswith(f"{folder / 'encoder.json'}: ")
    assert message in refusal(folder)


def test_words_of_another_encoder_are_found_out(made, tmp_path):
    folder = tmp_path / "stored"
    resolve(f"onnx:{made('clip').folder}").write(folder)
    for name in ("text.onnx", "tokenizer.json"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content.replace(b"e", b"f", 1))
        with pytest.raises(EncoderError, match=f"{name}: not the file that encoder"):
            check_encoder(folder)
        (folder / name).write_bytes(content + b" ")
        assert f"{folder / name}: {len(content) + 1:,} bytes, but encoder.json" in refusal(folder)
        (folder / name).unlink()
        assert f"{folder / name}: No such file" in refusal(folder)
        (folder / name).write_bytes(content)
    check_encoder(folder)
