"""Blended training faces: of which people a face is made, and where its identity centre lies."""

import torch
import torch.nn.functional as F
from torch import Tensor

from deocc.batch import MaskedFaceBatch
from deocc.losses import IdentityLoss
from deocc.losses.sharded_identity import ShardedIdentityLoss


def people(batch: MaskedFaceBatch) -> Tensor:
    """(B, 3), whose faces a face is made of."""
    return torch.cat([batch["identity"][:, None], batch["other_identity"]], 1)


def shares(batch: MaskedFaceBatch) -> Tensor:
    """(B, 3), by which shares; they sum to 1."""
    return torch.cat([1 - batch["other_share"].sum(1, keepdim=True), batch["other_share"]], 1)


def own_centers(identity_centers: Tensor, batch: MaskedFaceBatch) -> Tensor:
    """(B, D) unit vectors, each sample's centre of (K, D) identity centres, between its people's where faces are blended."""
    return F.normalize((identity_centers[people(batch)] * shares(batch)[:, :, None]).sum(1), dim=1)


def blended_identity_loss(
    classifier: IdentityLoss | ShardedIdentityLoss, embedding: Tensor, batch: MaskedFaceBatch, turn: int = 0
) -> Tensor:
    """Cross-entropy over the training identities, a scalar; a blended face belongs to all of its people by their shares.

    Args:
        classifier: holds the identities' weights, the margin and the scale.
        embedding: (B, D) unit vectors.
        batch: whose faces they are.
        turn: decides which identities a sharded classifier samples; the number of the training step.
    """
    if isinstance(classifier, ShardedIdentityLoss):
        loss: Tensor = classifier(embedding, people(batch), shares(batch), turn)
    else:
        loss = classifier(embedding, people(batch), shares(batch))
    return loss
