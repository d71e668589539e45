"""Single architectures: parity with the networks whose weights they take."""

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from deocc.networks import create_embedder
from deocc.networks.embedders import facenet as inception_resnet
from deocc.networks.embedders import iresnet
from deocc.networks.embedders import timm as timm_backbone

TIMM = "timm/resnet18"


def _scrambled(network: nn.Module) -> nn.Module:
    """The network in evaluation mode, with batch statistics that differ by channel, as in a trained one."""
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network.eval()


def test_inception_resnet_equals_facenet_pytorch():
    facenet = pytest.importorskip("facenet_pytorch")
    torch.manual_seed(0)
    theirs = _scrambled(facenet.InceptionResnetV1())
    ours = inception_resnet.InceptionResNetV1().eval()
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours.load_state_dict(theirs.state_dict())
    image = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(nn.functional.normalize(ours(image)), theirs(image), atol=1e-5, rtol=1e-4)


def test_inception_resnet_ignores_the_classifier_of_a_file(tmp_path):
    state = inception_resnet.InceptionResNetV1().state_dict()
    path = tmp_path / "vggface2.pt"
    torch.save(state | {"logits.weight": torch.zeros(3, 512), "logits.bias": torch.zeros(3)}, path)
    embedder = create_embedder("inception_resnet_v1", weights=str(path))
    assert embedder.pretrained and torch.equal(embedder.network.last_linear.weight, state["last_linear.weight"])


@pytest.mark.parametrize(("name", "millions"), [("iresnet18", 24.03), ("iresnet50", 43.59), ("iresnet100", 65.16)])
def test_iresnet_has_insightfaces_size(name, millions):
    with torch.device("meta"):
        network = iresnet.IResNet(iresnet.BLOCKS[name])
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)


def test_iresnet_has_insightfaces_names():
    keys = set(iresnet.IResNet(iresnet.BLOCKS["iresnet18"]).state_dict())
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {"conv1.weight", "prelu.weight", "fc.weight", "fc.bias"} | {
        f"{n}.{v}" for n in ("bn1", "bn2", "features") for v in norm
    }
    for block in (f"layer{stage}.{number}" for stage in (1, 2, 3, 4) for number in (0, 1)):
        expected |= {f"{block}.{n}.weight" for n in ("conv1", "conv2", "prelu")}
        expected |= {f"{block}.{n}.{v}" for n in ("bn1", "bn2", "bn3") for v in norm}
        if block.endswith(".0"):
            expected |= {f"{block}.downsample.0.weight"} | {f"{block}.downsample.1.{v}" for v in norm}
    assert keys == expected


class _AdaFaceBlock(nn.Module):
    """The layout of AdaFace's blocks, as its files show it."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
        self.shortcut_layer = nn.MaxPool2d(1, stride) if before == after else shortcut
        first = [
            nn.BatchNorm2d(before),
            nn.Conv2d(before, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.PReLU(after),
        ]
        self.res_layer = nn.Sequential(*first, nn.Conv2d(after, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after))

    def forward(self, features: Tensor) -> Tensor:
        return self.res_layer(features) + self.shortcut_layer(features)


def _adaface(blocks: tuple[int, ...]) -> nn.Sequential:
    body: list[nn.Module] = []
    before = 64
    for after, count in zip((64, 128, 256, 512), blocks, strict=True):
        body += [_AdaFaceBlock(before if i == 0 else after, after, 2 if i == 0 else 1) for i in range(count)]
        before = after
    head = [
        nn.BatchNorm2d(512),
        nn.Dropout(0.4),
        nn.Flatten(),
        nn.Linear(512 * 49, 512),
        nn.BatchNorm1d(512, affine=False),
    ]
    network = nn.Sequential()
    network.add_module(
        "input_layer", nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64))
    )
    network.add_module("body", nn.Sequential(*body))
    network.add_module("output_layer", nn.Sequential(*head))
    return network


def test_an_adaface_checkpoint_loads_and_sees_blue_green_red(tmp_path, monkeypatch):
    blocks = (2, 1, 2, 1)
    monkeypatch.setitem(iresnet.BLOCKS, "iresnet18", blocks)
    torch.manual_seed(0)
    theirs = _scrambled(_adaface(blocks))
    path = tmp_path / "adaface.ckpt"
    state = {f"model.{key}": value for key, value in theirs.state_dict().items()}
    torch.save({"state_dict": state | {"head.kernel": torch.zeros(512, 7)}}, path)
    embedder = create_embedder("iresnet18", weights=str(path)).freeze()
    crop = torch.rand(2, 3, 112, 112) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(embedder.embed_crop(crop), theirs(crop.flip(1)), atol=1e-4, rtol=1e-4)


def test_timm_weights_from_a_file_leave_the_classifier_out(tmp_path):
    import timm

    whole = _scrambled(timm.create_model("resnet18"))
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(whole.state_dict(), path)
    embedder = create_embedder(TIMM, weights=str(path)).eval()
    image = torch.randn(1, 3, 112, 112)
    with torch.no_grad():
        torch.testing.assert_close(
            embedder.network(image), whole.forward_head(whole.forward_features(image), pre_logits=True)
        )


def test_timm_downloads_only_when_asked_and_says_how_to_do_without(monkeypatch):
    import timm

    asked: list[bool] = []
    create = timm.create_model

    def offline(model: str, pretrained: bool = False, **options: object) -> nn.Module:
        asked.append(pretrained)
        if pretrained:
            raise ConnectionError("unreachable")
        return create(model, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    create_embedder(TIMM)
    assert asked == [False]
    with pytest.raises(
        FileNotFoundError, match=r"download model\.safetensors from https://huggingface\.co/timm/resnet18.*weights="
    ):
        create_embedder(TIMM, weights=timm_backbone.ONLINE)


def test_timm_networks_of_one_size_get_that_size():
    embedder = create_embedder("timm/vit_tiny_patch16_224")
    assert (embedder.input_size, embedder.template.size, embedder.embedding_dim) == (224, 224, 192)
