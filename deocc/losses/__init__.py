"""Training losses: functions of tensors that return a scalar, and modules where a loss has settings or weights."""

from deocc.losses.adversarial import discriminator_loss, generator_loss, gradient_penalty
from deocc.losses.distributed import gather_embeddings, gathered_pair_relation_loss, gathered_triplet_relation_loss
from deocc.losses.identity import IdentityLoss, identity_loss, margin_cosine, margin_logits
from deocc.losses.reconstruction import feature_distance, local_chroma_loss, masked_l1_loss
from deocc.losses.relational import (
    instance_relation_loss,
    pair_relation_loss,
    prediction_relation_loss,
    triplet_relation_loss,
)
from deocc.losses.segmentation import mask_segmentation_loss
from deocc.losses.sharded_identity import ShardedIdentityLoss, sharded_identity_loss

__all__ = [
    "IdentityLoss",
    "ShardedIdentityLoss",
    "discriminator_loss",
    "feature_distance",
    "gather_embeddings",
    "gathered_pair_relation_loss",
    "gathered_triplet_relation_loss",
    "generator_loss",
    "gradient_penalty",
    "identity_loss",
    "instance_relation_loss",
    "local_chroma_loss",
    "margin_cosine",
    "margin_logits",
    "mask_segmentation_loss",
    "masked_l1_loss",
    "pair_relation_loss",
    "prediction_relation_loss",
    "sharded_identity_loss",
    "triplet_relation_loss",
]
