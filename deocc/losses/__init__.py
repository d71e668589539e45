"""Losses: one file each, a function `x_loss()` and a thin module `XLoss`; tensors in, a scalar out."""

from deocc.losses.adversarial import (
    DiscriminatorLoss,
    GeneratorLoss,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)
from deocc.losses.distributed import gather_embeddings, gathered_pair_relation_loss, gathered_triplet_relation_loss
from deocc.losses.identity import IdentityLoss, identity_loss, margin_cosine, margin_logits
from deocc.losses.reconstruction import MaskedL1Loss, PerceptualLoss, feature_distance, masked_l1_loss, perceptual_loss
from deocc.losses.relational import (
    InstanceRelationLoss,
    PairRelationLoss,
    PredictionRelationLoss,
    TripletRelationLoss,
    instance_relation_loss,
    pair_relation_loss,
    prediction_relation_loss,
    triplet_relation_loss,
)
from deocc.losses.segmentation import MaskSegmentationLoss, mask_segmentation_loss
from deocc.losses.sharded_identity import ShardedIdentityLoss, sharded_identity_loss

__all__ = [
    "DiscriminatorLoss",
    "GeneratorLoss",
    "IdentityLoss",
    "InstanceRelationLoss",
    "MaskSegmentationLoss",
    "MaskedL1Loss",
    "PairRelationLoss",
    "PerceptualLoss",
    "PredictionRelationLoss",
    "ShardedIdentityLoss",
    "TripletRelationLoss",
    "discriminator_loss",
    "feature_distance",
    "gather_embeddings",
    "gathered_pair_relation_loss",
    "gathered_triplet_relation_loss",
    "generator_loss",
    "gradient_penalty",
    "identity_loss",
    "instance_relation_loss",
    "margin_cosine",
    "margin_logits",
    "mask_segmentation_loss",
    "masked_l1_loss",
    "pair_relation_loss",
    "perceptual_loss",
    "prediction_relation_loss",
    "sharded_identity_loss",
    "triplet_relation_loss",
]
