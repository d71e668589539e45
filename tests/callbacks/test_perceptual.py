"""What the callback adds to the restoration equals the metrics fed by hand."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import pytorch_lightning as pl
import torch

from deocc.callbacks import PerceptualCallback
from deocc.callbacks.results import _add_perceptual
from deocc.evaluation import FrechetDistance, KernelDistance, PerceptualDistance


def batches() -> list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
    """Two batches of three faces with something covered, and what a step returned."""
    draws = torch.Generator().manual_seed(0)
    made = []
    for _ in range(2):
        face = torch.rand(3, 3, 64, 64, generator=draws) * 2 - 1
        mask = torch.zeros(3, 1, 64, 64)
        mask[:, :, 30:] = 1
        completed = torch.where(mask > 0, face * 0.5, face)
        made.append(({"completed_face": completed}, {"face": face, "mask": mask, "kind": torch.tensor([0, 1, 0])}))
    return made


def test_the_callback_gives_what_the_metrics_give() -> None:
    callback = PerceptualCallback()
    module = cast(pl.LightningModule, SimpleNamespace(device=torch.device("cpu")))
    trainer: Any = SimpleNamespace(callbacks=[callback])
    callback.on_test_epoch_start(trainer, module)
    network = callback.network
    distance = PerceptualDistance(lambda face: network.embed_with_features(face)[1])
    frechet, kernel = FrechetDistance(network, network.embedding_dim), KernelDistance(network)
    for number, (outputs, batch) in enumerate(batches()):
        callback.on_test_batch_end(
            trainer, module, {}, {"face": batch["face"]}, number, 0
        )  # real occluders: nothing is known
        callback.on_test_batch_end(trainer, module, outputs, batch, number, 1)
        distance.update(outputs["completed_face"], batch["face"], batch["mask"], batch["kind"])
        for metric in (frechet, kernel):
            metric.update(outputs["completed_face"], batch["face"])
    callback.on_test_epoch_end(trainer, module)
    results: dict[str, Any] = {"restoration": {"given_mask": {"psnr": 20.0}}}
    _add_perceptual(trainer, results)
    expected = {
        **distance.compute()["mean"],
        "frechet": float(frechet.compute()),
        "kernel": float(kernel.compute()),
        "psnr": 20.0,
    }
    assert results["restoration"]["given_mask"] == pytest.approx(expected, rel=1e-5)
    assert expected["perceptual_covered"] > expected["perceptual"] > 0


def test_an_unknown_network_is_named_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match=r"vgg.*dlib_resnet"):
        PerceptualCallback("vgg")
