"""Encoders: what their graphs give is what their own networks give, stored or not."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cli_runner import error_of, run
from encoder_cases import LANDSCAPE, PORTRAIT, SCENES, SQUARE, Encoded, write_graph
from regionhash.encoders import EncoderError, check_encoder, read_encoder, resolve
from regionhash.encoders.preprocessing import FILTERS, Preprocessing
from reporters import Recording

CLOSE = {"rtol": 0, "atol": 2e-5}
"""Tolerance between ONNX Runtime and torch; the values are of order 1."""

SHARED = Path(os.environ.get("REGIONHASH_DATA", "../shared/data")).parent / "weights"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Tiny encoders by name, each made once."""
    kept = {}

    def make(name):
        if name not in kept:
            kept[name] = Encoded(name, tmp_path_factory.mktemp(name) / name)
        return kept[name]

    return make


@pytest.fixture
def vit(made, tmp_path):
    """A copy of the folder of a ViT, to be changed."""
    return Path(shutil.copytree(made("vit").folder, tmp_path / "vit"))


def refusal(spec):
    """Why there is no such encoder, in one line."""
    with pytest.raises(EncoderError) as caught:
        resolve(str(spec))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def grid(tokens, prefix, height, width):
    """Tokens (T, D) as a map (D, h, w), cell by cell."""
    cells = np.empty((tokens.shape[1], height, width), np.float32)
    for row in range(height):
        for column in range(width):
            cells[:, row, column] = tokens[prefix + row * width + column]
    return cells


# -- the same numbers as the networks -------------------------------------------------------------

PREFIX = {"dinov2": 1, "registers": 5, "siglip2": 0, "vit": 1}


@pytest.mark.parametrize("name", ["dinov2", "registers", "clip", "siglip2", "vit", "convnext"])
def test_pictures_become_what_transformers_makes_of_them(made, name):
    case = made(name)
    encoder = resolve(f"onnx:{case.folder}").encoder
    for image in (SQUARE, LANDSCAPE, PORTRAIT) if name in ("siglip2", "vit") else (SQUARE,):
        pixels, frame = encoder.prepare(image, case.size[0])
        assert pixels.shape == (3, *frame.input_size) and pixels.dtype == np.uint8
        wanted = case.processor(Image.fromarray(image), return_tensors="np")["pixel_values"]
        if name == "convnext":  # 384 pixels, and not 64
            pixels, _ = encoder.prepare(image, 384)
        np.testing.assert_allclose(
            encoder.preprocessing.scaled(pixels), wanted[0], rtol=0, atol=1e-6
        )
        outputs = case.reference(wanted)
        vector = outputs.get("image_embeds", outputs.get("pooler_output"))
        if vector is None:
            vector = outputs["last_hidden_state"][:, 0]
        np.testing.assert_allclose(encoder.vectors([pixels]), vector, **CLOSE)
        assert encoder.n_vector == vector.shape[1]
        assert encoder.gives_map == (name != "clip")
        if name in PREFIX:
            side = case.size[0] // encoder.stride
            cells = grid(outputs["last_hidden_state"][0], PREFIX[name], side, side)
            np.testing.assert_allclose(encoder.map(pixels), cells, **CLOSE)
            assert encoder.pooling == "mean" and encoder.n_channels == 32
        elif encoder.gives_map:
            np.testing.assert_allclose(
                encoder.map(pixels), outputs["last_hidden_state"][0], **CLOSE
            )
            assert encoder.pooling == "max" and encoder.n_channels == 40


@pytest.mark.parametrize("name", ["dinov2", "registers", "convnext"])
@pytest.mark.parametrize("short", [64, 112, 200])
def test_pictures_of_other_sizes_are_encoded_as_by_the_network(made, name, short):
    case = made(name)
    encoder = resolve(f"onnx:{case.folder}").encoder
    stride = 32 if name == "convnext" else 14
    assert encoder.stride == stride and encoder.fixed_size is None
    for image in (LANDSCAPE, PORTRAIT, SQUARE):
        pixels, frame = encoder.prepare(image, short)
        h, w = pixels.shape[1:]
        assert not h % stride and not w % stride and min(h, w) == stride * round(short / stride)
        assert frame.input_size == (h, w) and frame.size == image.shape[:2]
        resample = Image.Resampling(case.processor.resample)
        resized = np.asarray(Image.fromarray(image).resize((w, h), resample), np.float32)
        mean, std = case.processor.image_mean, case.processor.image_std
        wanted = ((resized / 255 - mean) / std).transpose(2, 0, 1).astype(np.float32)
        outputs = case.reference(wanted[None])
        found = encoder.map(pixels)
        assert found.shape == (encoder.n_channels, h // stride, w // stride)
        if name == "convnext":
            np.testing.assert_allclose(found, outputs["last_hidden_state"][0], **CLOSE)
        else:
            cells = grid(outputs["last_hidden_state"][0], PREFIX[name], h // stride, w // stride)
            np.testing.assert_allclose(found, cells, **CLOSE)


@pytest.mark.parametrize("name", ["clip", "siglip2", "vit"])
def test_an_encoder_of_one_size_squashes_pictures(made, name):
    encoder = resolve(f"onnx:{made(name).folder}").encoder
    assert encoder.fixed_size == (64, 64)
    pixels, frame = encoder.prepare(LANDSCAPE, 224)
    assert frame.input_size == (64, 64) and pixels.shape == (3, 64, 64)
    resized = Image.fromarray(LANDSCAPE).resize((64, 64), FILTERS[encoder.preprocessing.resample])
    np.testing.assert_array_equal(pixels.transpose(1, 2, 0), np.asarray(resized))


def test_vectors_do_not_depend_on_what_is_encoded_with_them(made):
    encoder = resolve(f"onnx:{made('dinov2').folder}").encoder
    assert encoder.layout.batched
    pictures = [SCENES[n % 6] if n % 3 else SCENES[n % 6][:, :80] for n in range(40)]
    inputs = [encoder.prepare(image, 70)[0] for image in pictures]
    together = encoder.vectors(inputs)
    alone = np.concatenate([encoder.vectors([pixels]) for pixels in inputs])
    np.testing.assert_allclose(together, alone, **CLOSE)
    assert encoder.vectors([]).shape == (0, 32)


def test_a_graph_for_one_picture_at_a_time_is_fed_one_at_a_time(made, tmp_path):
    path = write_graph(
        tmp_path / "g.onnx",
        "g (float[1,3,H,W] x) => (float[1,3] y) { y = ReduceMean<keepdims=0>(x, axes) }".replace(
            "{", "\n<int64[2] axes = {2, 3}>\n{"
        ),
    )
    encoder = resolve(f"onnx:{path}").encoder
    assert not encoder.layout.batched and encoder.fixed_size == (224, 224)
    inputs = [encoder.prepare(image, 224)[0] for image in SCENES[:3]]
    wanted = [encoder.preprocessing.scaled(pixels).mean((1, 2)) for pixels in inputs]
    np.testing.assert_allclose(encoder.vectors(inputs), wanted, rtol=0, atol=1e-4)
    with pytest.raises(EncoderError, match="gives a vector of the whole picture, and no map"):
        encoder.map(inputs[0])


@pytest.mark.parametrize(
    ("preprocessor", "field"),
    [
        ({"do_rescale": False}, 255.0),
        ({"rescale_factor": 1 / 127.5}, 2.0),
        ({"image_mean": 0.5, "image_std": [0.5] * 3}, None),
        ({"do_normalize": False}, None),
    ],
)
def test_every_field_of_a_preprocessor_counts(preprocessor, field):
    base = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7], "resample": 3}
    read = Preprocessing.of_transformers(base | preprocessor)
    pixels = np.full((3, 2, 2), 51, np.uint8)
    mean, std = np.array(base["image_mean"]), np.array(base["image_std"])
    value = 0.2 * (field or 1)
    if "image_mean" in preprocessor:
        mean = std = np.full(3, 0.5)
    if preprocessor.get("do_normalize") is False:
        mean, std = np.zeros(3), np.ones(3)
    wanted = ((value - mean) / std)[:, None, None] * np.ones((1, 2, 2))
    np.testing.assert_allclose(read.scaled(pixels), wanted, rtol=1e-5)
    assert read.resample == "bicubic"


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        ({"size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": True}, (224, 224)),
        ({"size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": False}, (256, 256)),
        ({"size": {"height": 96, "width": 64}}, (96, 64)),
        ({"size": {"longest_edge": 512}}, None),
        ({}, None),
    ],
)
def test_the_size_of_a_preprocessor_is_that_of_the_input(sizes, wanted):
    read = Preprocessing.of_transformers({"image_mean": 0, "image_std": 1} | sizes)
    assert read.size == wanted
    assert Preprocessing.from_record(json.loads(json.dumps(read.to_record()))) == read


# -- timm and torchvision -------------------------------------------------------------------------


def saved_weights(network, path):
    torch.manual_seed(0)
    state = {name: value.contiguous().clone() for name, value in network.state_dict().items()}
    save_file(state, path)
    return path


def compare_with_timm(name, weights, shorts):
    import timm

    network = timm.create_model(name)
    spec = f"timm:{name}={saved_weights(network, weights)}"
    network = timm.create_model(name, **({"dynamic_img_size": True} if "vit" in name else {}))
    from safetensors.torch import load_file

    network.load_state_dict(load_file(weights))
    network.eval()
    resolved = resolve(spec)
    encoder = resolved.encoder
    assert resolved.spec == spec
    config = timm.data.resolve_model_data_config(network)
    for short in shorts:
        pixels, _ = encoder.prepare(LANDSCAPE, short)
        h, w = pixels.shape[1:]
        bicubic = Image.Resampling[config["interpolation"].upper()]
        resized = np.asarray(Image.fromarray(LANDSCAPE).resize((w, h), bicubic), np.float32)
        wanted = ((resized / 255 - config["mean"]) / config["std"]).transpose(2, 0, 1)
        with torch.no_grad():
            features = network.forward_features(torch.from_numpy(wanted).float()[None])
            vector = network.forward_head(features, pre_logits=True).numpy()
        features = features[0].numpy()
        if features.ndim == 2:
            n_prefix = network.num_prefix_tokens
            features = grid(features, n_prefix, h // encoder.stride, w // encoder.stride)
        scale = np.abs(features).max()
        np.testing.assert_allclose(encoder.map(pixels), features, rtol=0, atol=1e-4 * scale)
        np.testing.assert_allclose(
            encoder.vectors([pixels]), vector, rtol=0, atol=1e-4 * np.abs(vector).max()
        )
    return encoder


@pytest.mark.slow
def test_a_vision_transformer_of_timm_takes_any_size(tmp_path):
    encoder = compare_with_timm("test_vit", tmp_path / "w.safetensors", (96, 160, 208))
    assert encoder.fixed_size is None and encoder.stride == 16 and encoder.layout.batched


@pytest.mark.slow
def test_a_convolutional_network_of_timm_takes_any_size(tmp_path):
    encoder = compare_with_timm("test_convnext", tmp_path / "w.safetensors", (96, 160, 224))
    assert encoder.fixed_size is None and encoder.stride == 32 and encoder.pooling == "max"


@pytest.mark.slow
def test_a_network_of_torchvision_gives_the_map_of_its_last_stage(tmp_path):
    from torchvision.models import mobilenet_v2

    weights = SHARED / "mobilenet_v2-torchvision.pth"
    network = mobilenet_v2()
    if weights.is_file():
        network.load_state_dict(torch.load(weights, weights_only=True))
    else:
        weights = tmp_path / "mobilenet.pth"
        torch.save(network.state_dict(), weights)
    network.eval()
    encoder = resolve(f"torchvision:mobilenet_v2={weights}").encoder
    assert (encoder.n_channels, encoder.stride, encoder.n_vector) == (1280, 32, 0)
    for short in (96, 224):
        pixels, _ = encoder.prepare(PORTRAIT, short)
        scaled = encoder.preprocessing.scaled(pixels)
        with torch.no_grad():
            wanted = network.features(torch.from_numpy(scaled)[None])[0].numpy()
        np.testing.assert_allclose(
            encoder.map(pixels), wanted, rtol=0, atol=1e-4 * np.abs(wanted).max()
        )
    with pytest.raises(EncoderError, match="gives a map, and no vector"):
        encoder.vectors([pixels])


@pytest.mark.slow
def test_a_network_that_refuses_other_sizes_is_exported_at_its_own(tmp_path, monkeypatch):
    from torchvision import models

    small = {"num_layers": 1, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 32}
    network = models.VisionTransformer(image_size=224, patch_size=32, **small)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    monkeypatch.setattr(models, "get_model", lambda name, weights: network)
    encoder = resolve(f"torchvision:vit_b_32={tmp_path / 'w.pth'}").encoder
    assert encoder.fixed_size == (224, 224) and encoder.layout.batched
    pixels, _ = encoder.prepare(LANDSCAPE, 224)
    assert encoder.map(pixels).shape == (32, 7, 7)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("timm:resnet_of_nobody", "timm:resnet_of_nobody: no such model in timm"),
        ("timm:test_vit=/nowhere.safetensors", "/nowhere.safetensors: no such weights file"),
        ("torchvision:nothing", "torchvision:nothing: no such classifier in torchvision"),
        ("torchvision:fasterrcnn_resnet50_fpn", "no such classifier in torchvision"),
        ("torchvision:mobilenet_v2=/nowhere.pth", "/nowhere.pth: no such weights file"),
    ],
)
def test_a_network_that_cannot_be_had_is_one_line(spec, message):
    assert message in refusal(spec)


def test_weights_of_another_network_are_one_line(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    assert "these are not the weights of this network" in refusal(f"timm:test_vit={path}")
    path.write_bytes(b"no weights")
    assert "no readable safetensors" in refusal(f"timm:test_vit={path}")


def test_exporting_without_torch_names_what_to_install():
    code = """
        import sys
        sys.modules["torch"] = None
        from regionhash.encoders import resolve
        for name in ("timm:test_vit", "torchvision:resnet18"):
            try:
                resolve(name)
            except ValueError as error:
                print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        f'{name}: exporting it needs torch: pip install "regionhash[train]"'
        for name in ("timm:test_vit", "torchvision:resnet18")
    ]


# -- graphs of all kinds --------------------------------------------------------------------------

MEAN = "y = ReduceMean<keepdims=0>(x, axes)"
AXES = "<int64[2] axes = {2, 3}>"
INPUT = "float[B,3,H,W] x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "g (float[B,3,H,W] x, int64[B,N] ids) => (float[B,D] y) { y = Identity(x) }",
            "must have one input, a picture; it has 2: x, ids",
        ),
        (
            "g (float[B,H,W] x) => (float[B,H,W] y) { y = Relu(x) }",
            "its input x must be (B, 3, h, w), got (B, H, W)",
        ),
        (
            "g (float[B,224,224,3] x) => (float[B,224,224,3] y) { y = Relu(x) }",
            "its input x must be (B, 3, h, w), got (B, 224, 224, 3)",
        ),
        (
            "g (float[4,3,H,W] x) => (float[4,3,H,W] y) { y = Relu(x) }",
            "its input x must be (B, 3, h, w), got (4, 3, H, W)",
        ),
        (
            "g (double[B,3,H,W] x) => (double[B,3,H,W] y) { y = Relu(x) }",
            "its input x must be tensor(float), got tensor(double)",
        ),
        (
            "g (int64[B,3,H,W] x) => (int64[B,3,H,W] y) { y = Abs(x) }",
            "its input x must be tensor(float), got tensor(int64)",
        ),
        (
            "g (uint8[B,3,H,W] x) => (uint8[B,3,H,W] y) { y = Identity(x) }",
            "its input x must be tensor(float), got tensor(uint8)",
        ),
        (
            f"g ({INPUT}) => (float[B,3] y) <int64[2] axes = {{2, 3}}>"
            "{ a = Abs(x) b = Neg(a) c = Sqrt(b) y = ReduceMean<keepdims=0>(c, axes) }",
            "its output y has values that are no numbers",
        ),
        (
            f"g ({INPUT}) => (float[B,43,D] y) <int64[3] s = {{1, 43, -1}}, int64[1] a = {{0}},"
            "int64[1] c = {43}, int64[1] d = {3}> { f = Slice(x, a, c, d) y = Reshape(f, s) }",
            "its 43 tokens are no grid of 224 x 224 pixels",
        ),
        (
            f"g ({INPUT}) => (float[B] y) <int64[3] axes = {{1, 2, 3}}> {{ {MEAN} }}",
            "no output is a map (1, D, h, w), tokens (1, T, D) or a vector (1, D)",
        ),
        (
            f"g ({INPUT}) => (float[B,3] y, float[B,3] z) {AXES} {{ {MEAN} z = Neg(y) }}",
            "several outputs are vectors: y, z; one must remain",
        ),
        (
            f"g ({INPUT}) => (float[B,D] y) <int64[2] s = {{1, 1000}}> {{ y = Reshape(x, s) }}",
            "if it takes another size, a preprocessor_config.json beside it says which",
        ),
    ],
)  # fmt: skip
def test_a_graph_that_is_no_encoder_of_pictures_is_one_line(tmp_path, text, message):
    path = write_graph(tmp_path / "g.onnx", text)
    found = refusal(f"onnx:{path}")
    assert found.startswith(f"{path}: ") and message in found


def test_an_operator_of_another_program_is_one_line(tmp_path):
    text = f"g ({INPUT}) => (float[B,3,H,W] y) {{ y = com.example.Magic(x) }}"
    path = write_graph(tmp_path / "g.onnx", text, '"" : 20, "com.example" : 1')
    assert f"{path}: not a readable graph (" in refusal(f"onnx:{path}")


@pytest.mark.parametrize("content", [b"", b"no graph", b"\x08\x0a" * 50, b"\xff" * 30])
def test_a_file_that_is_no_graph_is_one_line(tmp_path, content):
    path = tmp_path / "g.onnx"
    path.write_bytes(content)
    assert refusal(f"onnx:{path}").startswith(f"{path}: ")


def test_a_graph_that_is_cut_off_is_one_line(made, tmp_path):
    whole = made("vit").graph.read_bytes()
    for end in (len(whole) // 2, len(whole) - 1, 3):
        path = tmp_path / "g.onnx"
        path.write_bytes(whole[:end])
        assert refusal(f"onnx:{path}").startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("onnx:{tmp}", "{tmp}: has no onnx/vision_model.onnx, "),
        ("hf:{tmp}", "{tmp}: has no onnx/vision_model.onnx, "),
        ("onnx:{tmp}/g.onnx", "{tmp}/g.onnx: cannot read the graph: No such file or directory"),
        ("dinov2", "encoder 'dinov2': must be onnx:FILE, hf:NAME, timm:NAME or torchvision:NAME"),
        ("onnx:", "encoder 'onnx:': must be onnx:FILE"),
        ("tf:x", "encoder tf:x: no installed package offers encoders 'tf:'; known: hf, onnx"),
        ("a\nb:c", "encoder a b:c: no installed package"),
    ],
)
def test_a_spec_that_names_nothing_is_one_line(tmp_path, spec, message):
    assert message.format(tmp=tmp_path) in refusal(spec.format(tmp=tmp_path))


def test_of_several_maps_the_coarsest_is_taken(tmp_path):
    text = (
        f"g ({INPUT}) => (float[B,3,a,b] p, float[B,3,c,d] q) "
        "{ p = AveragePool<kernel_shape=[8,8], strides=[8,8]>(x)"
        "  q = MaxPool<kernel_shape=[16,16], strides=[16,16]>(x) }"
    )
    encoder = resolve(f"onnx:{write_graph(tmp_path / 'g.onnx', text)}").encoder
    assert encoder.stride == 16 and encoder.n_channels == 3 and not encoder.n_vector
    pixels, _ = encoder.prepare(SQUARE, 64)
    scaled = encoder.preprocessing.scaled(pixels)
    wanted = scaled.reshape(3, 4, 16, 4, 16).max((2, 4))
    np.testing.assert_allclose(encoder.map(pixels), wanted, rtol=1e-6)


def test_cells_of_no_whole_number_of_pixels_are_refused(tmp_path):
    text = (
        f"g ({INPUT}) => (float[B,3,a,b] y) {{ y = MaxPool<kernel_shape=[3,3], strides=[2,2]>(x) }}"
    )
    path = write_graph(tmp_path / "g.onnx", text)
    assert "its map of 111 x 111 cells has no whole number of the 224 x 224" in refusal(
        f"onnx:{path}"
    )


TOKENS = (
    "g (float[1,3,32,32] x) => (float[1,5,D] y)"
    "<int64[3] s = {1, 5, -1}, int64[1] a = {0}, int64[1] b = {1000}, int64[1] d = {3}>"
    "{ f = Slice(x, a, c, d) y = Reshape(f, s) }"
).replace("int64[1] b = {1000}", "int64[1] c = {30}")


def test_tokens_that_are_several_grids_need_a_patch_size(tmp_path):
    path = write_graph(tmp_path / "g.onnx", TOKENS)
    found = refusal(f"onnx:{path}")
    assert "its 5 tokens may be cells of 16 or 32 pixels; a config.json beside it" in found
    (tmp_path / "config.json").write_text('{"patch_size": 16}')
    assert resolve(f"onnx:{path}").encoder.layout.prefix == 1


def test_a_graph_that_gives_the_same_grid_for_any_size_takes_one_size(tmp_path):
    text = (
        f"g ({INPUT}) => (float[1,50,D] y) <int64[3] s = {{1, 50, -1}}, int64[1] a = {{0}},"
        "int64[1] c = {50}, int64[1] d = {3}> { f = Slice(x, a, c, d) y = Reshape(f, s) }"
    )
    encoder = resolve(f"onnx:{write_graph(tmp_path / 'g.onnx', text)}").encoder
    assert encoder.fixed_size == (224, 224)
    assert (encoder.stride, encoder.layout.prefix) == (32, 1)


def test_a_graph_whose_batches_depend_on_each_other_is_fed_one_at_a_time(tmp_path):
    text = f"g ({INPUT}) => (float[B,3] y) {AXES} {{ r = ReduceMean<keepdims=0>(x, axes)"
    text += " y = CumSum(r, zero) }"
    text = text.replace("axes = {2, 3}", "axes = {2, 3}, int64 zero = {0}")
    encoder = resolve(f"onnx:{write_graph(tmp_path / 'g.onnx', text)}").encoder
    assert encoder.n_vector == 3 and not encoder.layout.batched


def test_a_picture_without_numbers_is_refused_when_it_is_encoded(tmp_path):
    text = (
        f"g ({INPUT}) => (float[B,3,a,b] y) <float t = {{2.9}}>"
        "{ p = MaxPool<kernel_shape=[8,8], strides=[8,8]>(x) q = Sub(t, p)"
        "  r = Abs(q) s = Add(q, r) u = Log(s) y = Identity(u) }"
    ).replace("float t = {2.9}", "float t = {9.0}")
    path = write_graph(tmp_path / "g.onnx", text)
    encoder = resolve(f"onnx:{path}").encoder
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_mean": 0, "image_std": 1, "rescale_factor": 1}'
    )
    pixels, _ = encoder.prepare(np.full((64, 64, 3), 255, np.uint8), 64)
    encoder.map(pixels)
    with pytest.raises(EncoderError, match="values that are no numbers for a picture"):
        resolve(f"onnx:{path}").encoder.map(pixels)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("preprocessor_config.json", "{", "preprocessor_config.json: "),
        ("preprocessor_config.json", "[]", "must be an object, got []"),
        ("preprocessor_config.json", "{}", "'image_mean' is missing"),
        (
            "preprocessor_config.json",
            '{"image_mean": [0, 0], "image_std": 1}',
            "image_mean must be three numbers, got [0, 0]",
        ),
        (
            "preprocessor_config.json",
            '{"image_mean": 0, "image_std": [1, 0, 1]}',
            "image_std must be positive",
        ),
        (
            "preprocessor_config.json",
            '{"image_mean": 0, "image_std": NaN}',
            "image_std must be a number, got nan",
        ),
        (
            "preprocessor_config.json",
            '{"image_mean": 0, "image_std": 1, "resample": 9}',
            "resample must be one of Pillow's filters, got 9",
        ),
        (
            "preprocessor_config.json",
            '{"image_mean": 0, "image_std": 1, "size": {"height": -1, "width": 3}}',
            "size must be sides in [1, 4096], got [-1, 3]",
        ),
        (
            "preprocessor_config.json",
            '{"do_flip_channel_order": true}',
            "channels other than RGB are not supported",
        ),
        ("config.json", '{"patch_size": [16, 8]}', "patch_size must be square, got [16, 8]"),
        ("config.json", '{"image_size": "big"}', "image_size must be sides"),
    ],
)
def test_a_damaged_configuration_is_one_line(vit, file, content, message):
    (vit / file).write_text(content)
    found = refusal(f"onnx:{vit}")
    assert message in found and str(vit / file) in found


def test_a_file_is_read_with_the_configurations_beside_it(made, tmp_path):
    case = made("siglip2")
    reporter = Recording()
    beside = resolve(f"onnx:{case.graph}", reporter)
    assert beside.identity == resolve(f"hf:{case.folder}").identity and not reporter.notes
    config = json.loads((case.folder / "preprocessor_config.json").read_text())
    shutil.copytree(case.folder, tmp_path / "new")
    (tmp_path / "new" / "preprocessor_config.json").unlink()
    (tmp_path / "new" / "processor_config.json").write_text(json.dumps({"image_processor": config}))
    assert resolve(f"onnx:{tmp_path / 'new'}").identity == beside.identity


def test_without_configurations_imagenet_is_assumed_and_said(made, tmp_path):
    path = tmp_path / "g.onnx"
    shutil.copy(made("convnext").graph, path)
    reporter = Recording()
    found = resolve(f"onnx:{path}", reporter)
    assert found.encoder.preprocessing == Preprocessing()
    (note,) = reporter.notes
    assert note.startswith(f"{path}: no preprocessor_config.json beside it; ")


# -- weights in other files -----------------------------------------------------------------------


@pytest.fixture
def parted(vit):
    """The ViT with its weights in another file."""
    path = vit / "onnx" / "model.onnx"
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="model.onnx_data", size_threshold=0)
    assert (vit / "onnx" / "model.onnx_data").stat().st_size > 50_000
    return vit


def test_a_graph_with_weights_beside_it_becomes_one_file(made, parted, tmp_path):
    found = resolve(f"onnx:{parted}")
    found.write(tmp_path / "stored")
    shutil.rmtree(parted)
    stored = read_encoder(tmp_path / "stored")
    whole = resolve(f"onnx:{made('vit').folder}")
    pixels, _ = whole.encoder.prepare(SQUARE, 64)
    np.testing.assert_array_equal(stored.encoder.map(pixels), whole.encoder.map(pixels))
    model = onnx.load(tmp_path / "stored" / "encoder.onnx")  # onnx agrees that it is whole
    onnx.checker.check_model(model)
    assert not any(tensor.external_data for tensor in model.graph.initializer)


def test_a_graph_in_one_file_is_stored_byte_by_byte(made, tmp_path):
    resolve(f"onnx:{made('vit').folder}").write(tmp_path / "stored")
    assert (tmp_path / "stored/encoder.onnx").read_bytes() == made("vit").graph.read_bytes()


def test_missing_weights_are_one_line(parted):
    data = parted / "onnx" / "model.onnx_data"
    data.write_bytes(data.read_bytes()[:-4])
    assert "too short, " in refusal(f"onnx:{parted}")
    data.unlink()
    assert f"{data}: cannot read the weights of model.onnx: No such file" in refusal(
        f"onnx:{parted}"
    )


@pytest.mark.parametrize("place", ["../secret", "/etc/passwd", "a/../../b"])
def test_weights_outside_the_folder_are_not_read(parted, place):
    path = parted / "onnx" / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = place
    path.write_bytes(model.SerializeToString())
    assert "its weights are outside its folder" in refusal(f"onnx:{parted}")


def test_more_than_two_gigabytes_are_refused_before_they_are_read(parted):
    path = parted / "onnx" / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "length":
            entry.value = str(3 << 30)
    path.write_bytes(model.SerializeToString())
    assert "graph and weights are larger than 2 GB" in refusal(f"onnx:{parted}")


# -- stored ---------------------------------------------------------------------------------------


@pytest.fixture
def stored(made, tmp_path):
    """The folder of a stored encoder, to be changed."""
    resolve(f"onnx:{made('dinov2').folder}").write(tmp_path / "stored")
    return tmp_path / "stored"


def test_a_stored_encoder_is_the_same(made, stored):
    first, found = resolve(f"onnx:{made('dinov2').folder}"), read_encoder(stored)
    assert sorted(path.name for path in stored.iterdir()) == ["encoder.json", "encoder.onnx"]
    assert found.identity == first.identity and found.spec == first.spec
    assert json.loads(json.dumps(found.identity)) == found.identity
    pixels, frame = found.encoder.prepare(LANDSCAPE, 98)
    again, same = first.encoder.prepare(LANDSCAPE, 98)
    np.testing.assert_array_equal(pixels, again)
    assert frame == same
    np.testing.assert_array_equal(found.encoder.map(pixels), first.encoder.map(pixels))
    np.testing.assert_array_equal(found.encoder.vectors([pixels]), first.encoder.vectors([pixels]))
    checked = check_encoder(stored)
    assert (checked.spec, checked.identity) == (found.spec, found.identity)
    assert resolve(f"onnx:{stored}").identity == first.identity


def test_a_stored_encoder_needs_no_torch(stored):
    code = f"""
        import sys
        for name in ("torch", "transformers", "timm", "huggingface_hub", "onnx", "tokenizers"):
            sys.modules[name] = None
        import numpy as np
        from pathlib import Path
        from regionhash.encoders import check_encoder, read_encoder
        encoder = read_encoder(Path({str(stored)!r})).encoder
        pixels, _ = encoder.prepare(np.zeros((40, 60, 3), np.uint8), 70)
        print(encoder.map(pixels).shape, encoder.vectors([pixels]).shape)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "(32, 5, 8) (1, 32)\n"


def test_features_depend_on_all_of_the_identity(made, vit):
    first = resolve(f"onnx:{made('vit').folder}").identity
    assert resolve(f"onnx:{vit}").identity == first
    config = json.loads((vit / "preprocessor_config.json").read_text())
    (vit / "preprocessor_config.json").write_text(json.dumps(config | {"resample": 3}))
    assert resolve(f"onnx:{vit}").identity != first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "encoder format 2, this version of regionhash reads 1"),
        ({"spec": 7}, "spec must be text, got 7"),
        ({"graph": {}}, "'bytes' is missing"),
        ({"graph": 7}, "graph must be an object, got 7"),
        ({"preprocessing": {}}, "preprocessing must have mean, std"),
        ({"preprocessing": {"mean": None}}, "mean must be three numbers, got None"),
        ({"preprocessing": {"resample": "best"}}, "unknown resample 'best'"),
        ({"preprocessing": {"size": [0, 4]}}, "size must be sides in"),
        ({"layout": {"stride": 0}}, "stride must be in [1, 1024], got 0"),
        ({"layout": {"batched": 1}}, "layout must have input, "),
        ({"layout": {"more": 1}}, "layout must have input, "),
        ({"layout": {"n_channels": 0}}, "layout contradicts itself"),
        ({"layout": {"prefix": -1}}, "prefix must be in [0, 16], got -1"),
        ({"layout": {"fixed_size": [7]}}, "fixed_size must be sides"),
    ],
)
def test_a_damaged_record_is_one_line(stored, change, message):
    path = stored / "encoder.json"
    record = json.loads(path.read_text())
    for name, value in change.items():
        merge = isinstance(value, dict) and value
        record[name] = record[name] | value if merge else value
    path.write_text(json.dumps(record))
    found = refusal(f"onnx:{stored}")
    assert found.startswith(f"{path}: ") and message in found


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"format": 1}'])
def test_a_record_that_is_none_is_one_line(stored, content):
    (stored / "encoder.json").write_bytes(content)
    assert refusal(f"onnx:{stored}").startswith(f"{stored / 'encoder.json'}: ")


def test_a_graph_of_another_encoder_is_found_out(made, stored):
    graph = stored / "encoder.onnx"
    whole = graph.read_bytes()
    graph.write_bytes(whole + b"\x00")
    assert f"{graph}: {len(whole) + 1:,} bytes, but encoder.json says {len(whole):,}" in refusal(
        f"onnx:{stored}"
    )
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    graph.write_bytes(changed)
    read_encoder(stored)
    with pytest.raises(EncoderError, match=r"encoder\.onnx: not the file that encoder\.json"):
        check_encoder(stored)
    graph.unlink()
    assert f"{graph}: No such file or directory" in refusal(f"onnx:{stored}")


def test_a_graph_that_is_replaced_is_one_line_when_it_is_run(stored):
    graph = stored / "encoder.onnx"
    graph.write_bytes(b"\x00" * graph.stat().st_size)
    encoder = read_encoder(stored).encoder
    with pytest.raises(EncoderError, match=f"{stored}: not a readable graph") as caught:
        encoder.map(encoder.prepare(SQUARE, 70)[0])
    assert "\n" not in str(caught.value)


# -- other packages -------------------------------------------------------------------------------

PACKAGE = """
import numpy as np
from regionhash.data.frames import Frame

class Mean:
    n_channels, n_vector, gives_map, stride, pooling, fixed_size = 3, 3, True, 8, "max", None
    def __init__(self, rest):
        self.rest = rest
    def prepare(self, image, short):
        return np.zeros((3, short, short), np.uint8), Frame(image.shape[:2], (short, short))
    def map(self, pixels):
        return pixels[:, ::8, ::8].astype(np.float32)
    def vectors(self, inputs):
        return np.stack([pixels.mean((1, 2)) for pixels in inputs]).astype(np.float32)

def fails(rest):
    raise RuntimeError("no key\\nhere")

def nothing(rest):
    return rest
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "site"
    (folder / "meaner-1.0.dist-info").mkdir(parents=True)
    (folder / "meaner.py").write_text(PACKAGE)
    (folder / "meaner-1.0.dist-info" / "METADATA").write_text("Name: meaner\nVersion: 1.0\n")
    (folder / "meaner-1.0.dist-info" / "entry_points.txt").write_text(
        "[regionhash.encoders]\nmean = meaner:Mean\nfails = meaner:fails\n"
        "nothing = meaner:nothing\ngone = no_such_module:f\n"
    )
    monkeypatch.syspath_prepend(folder)
    yield folder
    sys.modules.pop("meaner", None)


def test_another_package_offers_encoders(package, tmp_path, monkeypatch):
    found = resolve("mean:a:b")
    assert found.encoder.rest == "a:b" and found.identity == {"spec": "mean:a:b"}
    found.write(tmp_path / "stored")
    assert [path.name for path in (tmp_path / "stored").iterdir()] == ["encoder.json"]
    again = read_encoder(tmp_path / "stored")
    assert again.encoder.rest == "a:b" and again.identity == found.identity
    check_encoder(tmp_path / "stored")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(package)])
    assert refusal(f"onnx:{tmp_path / 'stored'}").startswith(
        f"{tmp_path / 'stored' / 'encoder.json'}: no installed package offers encoders 'mean:'; "
    )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("fails:x", "encoder fails:x: meaner:fails: no key here"),
        ("nothing:x", "encoder nothing:x: meaner:nothing gives no encoder: it lacks n_channels"),
        ("gone:x", "encoder gone:x: no_such_module:f: No module named 'no_such_module'"),
    ],
)
def test_a_package_that_fails_is_one_line(package, spec, message):
    assert refusal(spec).startswith(message)


# -- the command ----------------------------------------------------------------------------------


def test_the_command_writes_an_encoder(made, tmp_path):
    folder = tmp_path / "kept"
    done = run("fetch", f"onnx:{made('dinov2').folder}", "--output", folder)
    assert done.stdout.splitlines()[1] == (
        f"{folder}: {made('dinov2').graph.stat().st_size / 1e6:.1f} MB"
    )
    record = json.loads(run("fetch", f"onnx:{folder}", "--json").stdout)
    assert record["folder"] == str(folder) and record["stride"] == 14
    run("fetch", f"onnx:{made('vit').folder}", "-o", folder)  # takes its place
    assert json.loads(run("fetch", f"onnx:{folder}", "--json").stdout)["stride"] == 16
    check_encoder(folder)


def test_the_command_leaves_nothing_where_it_fails(made, tmp_path):
    folder = tmp_path / "kept"
    assert "has no onnx/" in error_of("fetch", f"onnx:{tmp_path}", "-o", folder)
    assert not folder.exists()
    (tmp_path / "file").write_text("")
    assert error_of("fetch", f"onnx:{made('vit').folder}", "-o", tmp_path / "file").endswith(
        "file: not a folder"
    )
    assert "holds other files" in error_of("fetch", f"onnx:{made('vit').folder}", "-o", tmp_path)
