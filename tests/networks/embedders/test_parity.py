"""FaceNet, IResNet and timm backbones: equality with the networks whose weights they load."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from deocc.networks import create_embedder
from deocc.networks.embedders import facenet, iresnet
from deocc.networks.embedders import timm as timm_backbone

TIMM = "timm/resnet18"


def randomise_norms(network: nn.Module) -> Any:
    """Give batch statistics that differ by channel, as after training; returns the network in evaluation mode."""
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network.eval()


def test_facenet_equals_facenet_pytorch() -> None:
    package = pytest.importorskip("facenet_pytorch")
    theirs = randomise_norms(package.InceptionResnetV1())
    ours = facenet.InceptionResNetV1().eval()
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours.load_state_dict(theirs.state_dict())
    image = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(nn.functional.normalize(ours(image)), theirs(image), atol=1e-5, rtol=1e-4)


def test_facenet_ignores_classifier(tmp_path: Path) -> None:
    state = facenet.InceptionResNetV1().state_dict()
    torch.save(state | {"logits.weight": torch.zeros(3, 512), "logits.bias": torch.zeros(3)}, tmp_path / "vggface2.pt")
    embedder = create_embedder("inception_resnet_v1", weights=str(tmp_path / "vggface2.pt"))
    loaded = embedder.network.get_parameter("last_linear.weight")
    assert embedder.pretrained and torch.equal(loaded, state["last_linear.weight"])


@pytest.mark.parametrize(("name", "millions"), [("iresnet18", 24.03), ("iresnet50", 43.59), ("iresnet100", 65.16)])
def test_iresnet_size_as_insightface(name: str, millions: float) -> None:
    with torch.device("meta"):
        network = iresnet.IResNet(iresnet.BLOCKS[name])
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)


def test_iresnet_names_as_insightface() -> None:
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {"conv1.weight", "prelu.weight", "fc.weight", "fc.bias"}
    expected |= {f"{n}.{v}" for n in ("bn1", "bn2", "features") for v in norm}
    for stage in (1, 2, 3, 4):
        for block in (f"layer{stage}.0", f"layer{stage}.1"):
            expected |= {f"{block}.{n}.weight" for n in ("conv1", "conv2", "prelu")}
            expected |= {f"{block}.{n}.{v}" for n in ("bn1", "bn2", "bn3") for v in norm}
        expected |= {f"layer{stage}.0.downsample.0.weight"} | {f"layer{stage}.0.downsample.1.{v}" for v in norm}
    assert set(iresnet.IResNet(iresnet.BLOCKS["iresnet18"]).state_dict()) == expected


class AdaFaceBlock(nn.Module):
    """Block of AdaFace, reconstructed from its files."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
        self.shortcut_layer = nn.MaxPool2d(1, stride) if before == after else shortcut
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(before),
            nn.Conv2d(before, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.PReLU(after),
            nn.Conv2d(after, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
        )

    def forward(self, features: Tensor) -> Tensor:
        total: Tensor = self.res_layer(features) + self.shortcut_layer(features)
        return total


def adaface(blocks: tuple[int, ...]) -> nn.Module:
    body: list[nn.Module] = []
    before = 64
    for after, count in zip((64, 128, 256, 512), blocks, strict=True):
        body += [AdaFaceBlock(before if i == 0 else after, after, 2 if i == 0 else 1) for i in range(count)]
        before = after
    norm = nn.BatchNorm1d(512, affine=False)
    network = nn.Sequential()
    network.add_module(
        "input_layer", nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64))
    )
    network.add_module("body", nn.Sequential(*body))
    head = nn.Sequential(nn.BatchNorm2d(512), nn.Dropout(0.4), nn.Flatten(), nn.Linear(512 * 49, 512), norm)
    network.add_module("output_layer", head)
    return network


def test_adaface_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = (2, 1, 2, 1)
    monkeypatch.setitem(iresnet.BLOCKS, "iresnet18", blocks)
    theirs = randomise_norms(adaface(blocks))
    state = {f"model.{key}": value for key, value in theirs.state_dict().items()}
    torch.save({"state_dict": state | {"head.kernel": torch.zeros(512, 7)}}, tmp_path / "adaface.ckpt")
    embedder = create_embedder("iresnet18", weights=str(tmp_path / "adaface.ckpt")).freeze()
    crop = torch.rand(2, 3, 112, 112) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(embedder.embed_crop(crop), theirs(crop.flip(1)), atol=1e-4, rtol=1e-4)


def test_timm_file_without_classifier(tmp_path: Path) -> None:
    import timm  # after deocc, whose workaround for torchvision must come first

    theirs = randomise_norms(timm.create_model("resnet18"))
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    embedder = create_embedder(TIMM, weights=str(tmp_path / "model.safetensors")).eval()
    image = torch.randn(1, 3, 112, 112)
    with torch.no_grad():
        expected = theirs.forward_head(theirs.forward_features(image), pre_logits=True)
        torch.testing.assert_close(embedder.network(image), expected)


def test_timm_downloads_on_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    requests: list[bool] = []
    create = timm.create_model

    def offline(model: str, pretrained: bool = False, **options: Any) -> nn.Module:
        requests.append(pretrained)
        if pretrained:
            raise ConnectionError("unreachable")
        return create(model, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    create_embedder(TIMM)
    assert requests == [False]
    message = r"download model\.safetensors from https://huggingface\.co/timm/resnet18.*weights="
    with pytest.raises(FileNotFoundError, match=message):
        create_embedder(TIMM, weights=timm_backbone.ONLINE)


def test_timm_fixed_size() -> None:
    embedder = create_embedder("timm/vit_tiny_patch16_224")
    assert (embedder.input_size, embedder.template.size, embedder.embedding_dim) == (224, 224, 192)
