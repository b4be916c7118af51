import os

import pytest
import torch
from torchvision.models import get_model, squeezenet1_0
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from regionhash.models.checkpoints import build_model
from regionhash.parts.backbones import (
    BACKBONES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    build_backbone,
    stack_images,
)

LIGHT = ("mobilenet_v2_fpn", "mobilenet_v3_large_fpn", "squeezenet1_0_fpn", "tiny_fpn")


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_gives_maps_fine_to_coarse_for_its_anchors(name):
    if name in ("resnet101_fpn", "resnext50_fpn", "resnet34_fpn"):
        pytest.skip("the same code as resnet18_fpn and resnet50_fpn, and slow to build")
    backbone = build_backbone(name, weights="none", fpn_channels=32).eval()
    with torch.inference_mode():
        maps, top = backbone(torch.rand(1, 3, 96, 128))
    assert len(maps) == len(BACKBONES[name].anchor_sizes)
    assert {x.shape[1] for x in maps.values()} == {backbone.out_channels}
    heights = [x.shape[2] for x in maps.values()]
    assert heights == sorted(heights, reverse=True)
    assert top.shape[1] == backbone.top_channels


def _draw_statistics(net):
    """Statistics as of a trained network, so that folding matters."""
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2)


@pytest.mark.parametrize("name", LIGHT)
def test_stages_compute_what_the_network_computes(name, tmp_path):
    spec = BACKBONES[name]
    if spec.network is None:
        pytest.skip("the built-in backbone has no other form")
    torch.manual_seed(0)
    net = get_model(spec.network, weights=None).eval()
    _draw_statistics(net)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    images = torch.rand(2, 3, 96, 96)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.inference_mode():
        expected = net.features((images - mean) / std)
        if name == "squeezenet1_0_fpn":
            assert expected.shape[1] == 512
        for trained in (0, 3):
            backbone = build_backbone(
                name, weights=tmp_path / "net.pth", trained_stages=trained, fpn_channels=None
            )
            torch.testing.assert_close(backbone.eval().top(images), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("without", [(), ("aux1.", "aux2.", "fc.")])
def test_googlenet_computes_what_torchvision_computes_with_transform_input(tmp_path, without):
    torch.manual_seed(0)
    net = get_model("googlenet", weights=None, init_weights=False, transform_input=True).eval()
    _draw_statistics(net)
    state = {name: x for name, x in net.state_dict().items() if not name.startswith(without)}
    torch.save(state, tmp_path / "net.pth")
    images = torch.rand(2, 3, 97, 130)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
    seen = []
    for module in (net.inception3b, net.inception4e, net.inception5b):
        module.register_forward_hook(lambda module, given, output: seen.append(output))
    with torch.inference_mode():
        net((images - mean) / std)
        for trained in (0, 3):
            backbone = build_backbone(
                "googlenet_fpn",
                weights=tmp_path / "net.pth",
                trained_stages=trained,
                fpn_channels=None,
            ).eval()
            for expected, found in zip(seen, backbone._run_stages(images), strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_a_googlenet_file_without_a_stage_s_weights_is_refused(tmp_path):
    net = get_model("googlenet", weights=None, init_weights=False)
    state = net.state_dict()
    del state["inception5b.branch1.conv.weight"]
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(ValueError, match=r"1 missing, such as inception5b"):
        build_backbone("googlenet_fpn", weights=tmp_path / "net.pth")


def test_frozen_stages_take_no_gradient_and_have_no_batch_norm_left():
    backbone = build_backbone("mobilenet_v2_fpn", weights="none", trained_stages=1).train()
    first, second, third = backbone.stages
    for frozen in (first, second):
        assert not any(p.requires_grad for p in frozen.parameters())
        assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in frozen.modules())
    norms = [m for m in third.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms and not any(m.training for m in norms)
    assert all(p.requires_grad for p in third.parameters())


def test_images_are_stacked_at_the_top_left_and_filled_with_the_mean_colour():
    small, large = torch.full((3, 2, 3), 255, dtype=torch.uint8), torch.zeros(3, 4, 2).byte()
    batch, sizes = stack_images([small, large])
    assert batch.shape == (2, 3, 4, 3) and sizes == [(2, 3), (4, 2)]
    assert (batch[0, :, :2] == 1).all() and (batch[1, :, :, :2] == 0).all()
    assert batch[0, :, 3, 0].tolist() == pytest.approx(list(IMAGENET_MEAN))


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "no such weights file"), (b"", "not a readable state dict"), (b"x" * 99, "not a read")],
)
def test_weights_that_cannot_be_read_are_refused_with_the_file_and_the_reason(
    tmp_path, content, reason
):
    path = tmp_path / "weights.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"weights.pth: {reason}"):
        build_backbone("squeezenet1_0_fpn", weights=path)


def test_odd_weights_files_are_one_line_and_no_pipe_is_waited_for(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(999)}, path)
    whole = path.read_bytes()
    for content in (whole[:-200], whole[:300], whole[:600] + b"x" * 40 + whole[640:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"weights\.pth: ") as caught:
            build_backbone("squeezenet1_0_fpn", weights=path)
        assert "\n" not in str(caught.value)
    for state in (3, [1], {1: torch.zeros(2)}, {"features.0.weight": "a"}):
        torch.save(state, path)
        with pytest.raises(ValueError, match=r"weights\.pth: (these are )?not ") as caught:
            build_backbone("squeezenet1_0_fpn", weights=path)
        assert "\n" not in str(caught.value)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match=r"weights\.pth: not an ordinary file"):
        build_backbone("squeezenet1_0_fpn", weights=path)


def test_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "other.pth"
    torch.save(torch.nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(ValueError) as caught:
        build_backbone("squeezenet1_0_fpn", weights=path)
    assert str(caught.value) == (
        f"{path}: these are not the weights of this backbone (52 weights): 52 missing, such as "
        "features.0.weight; 2 unknown, such as weight"
    )


def test_weights_of_another_shape_are_refused(tmp_path):
    weights = squeezenet1_0(weights=None).state_dict()
    weights["features.0.bias"] = torch.zeros(3)
    torch.save(weights, tmp_path / "odd.pth")
    with pytest.raises(
        ValueError, match=r"\(52 weights\): 1 of another shape, such as features\.0\.bias$"
    ):
        build_backbone("squeezenet1_0_fpn", weights=tmp_path / "odd.pth")


def test_pickled_code_in_a_weights_file_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    torch.save({"a": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(ValueError, match=r"trap.pth: not a readable state dict"):
        build_backbone("squeezenet1_0_fpn", weights=tmp_path / "trap.pth")
    assert not (tmp_path / "sprung").exists()


def test_default_weights_without_internet_say_what_to_do(monkeypatch):
    from urllib.error import URLError

    def unreachable(*args, **kwargs):
        raise URLError(OSError(113, "no route to host"))

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    with pytest.raises(ValueError) as caught:
        build_backbone("mobilenet_v2_fpn", weights="default")
    assert str(caught.value) == (
        "https://download.pytorch.org/models/mobilenet_v2-7ebf99e0.pth (14 MB) could not be "
        "downloaded: no route to host; without internet put this file into "
        f"{torch.hub.get_dir()}/checkpoints, or pass it as --weights FILE, or pass random weights: "
        "--weights none"
    )


@pytest.mark.slow
def test_init_coco_takes_over_torchvisions_detector(tmp_path):
    torch.manual_seed(0)
    detector = FasterRCNN(resnet_fpn_backbone(backbone_name="resnet50", weights=None), 91).eval()
    torch.save(detector.state_dict(), tmp_path / "coco.pth")
    arguments = {"n_bits": 16, "n_classes": 3, "backbone": "resnet50_fpn", "init": "coco"}
    arguments |= {"weights": str(tmp_path / "coco.pth")}
    model = build_model("region-dh", arguments).eval()
    images = torch.rand(1, 3, 64, 64)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.inference_mode():
        expected = detector.backbone((images - mean) / std)
        maps, _ = model.backbone(images)
        for name, value in expected.items():
            torch.testing.assert_close(maps[name], value, rtol=1e-3, atol=1e-3)
    for ours, theirs in ((model.rpn, detector.rpn), (model.head, detector.roi_heads.box_head)):
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value)
    with pytest.raises(ValueError, match=r"default sizes: head\.fc6\.weight should be"):
        build_model("region-dh", arguments | {"n_hidden": 64})
