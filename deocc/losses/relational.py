"""Relational distillation losses between a student on completed faces and a teacher on the clean faces.

With student embeddings s, teacher embeddings t of the same images, identity centres C_k and the Huber loss h with
threshold 1:

    instance    mean_i |s_i - tau_i|^2,  tau = (1 - beta) t + beta C_k, of unit length where beta > 0
    pair        mean_{i != j} h(D^s_ij / mu^s - D^t_ij / mu^t),  D_ij = |e_i - e_j|,  mu = mean_{i != j} D_ij
    triplet     mean_{i, j, k different} h(cos^s(i; j, k) - cos^t(i; j, k))
    prediction  T^2 KL(softmax(gamma t.C / T) || softmax(gamma s.C / T))

where cos(i; j, k) is the cosine of the angle at e_i between e_j - e_i and e_k - e_i.

Only the student receives a gradient. All losses are computed in float32 or float64 regardless of autocast; embeddings
that arrive in bfloat16 have already lost their small distances, so compute them outside autocast.

[0] Li et al., "Look Through Masks", ACM MM 2020, arXiv 2409.12385. Uses instance-, pair- and triplet-wise relations, an
    identity-centred softened instance loss, and predictions beside features. Its formulas were not readable: the
    exact forms, beta, gamma and the triplet estimate from a subset of the anchors are our choice.
[1] Park et al., "Relational Knowledge Distillation", CVPR 2019 (RKD-D and RKD-A). Their code, github.com/lenscloth/RKD,
    also averages over i = j; here only different images count.
[2] Hinton et al., "Distilling the Knowledge in a Neural Network", 2015 (softened KL and its factor T^2).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from deocc.losses.distances import (
    AngleDifference,
    DistanceDifference,
    check_positive,
    loss_dtype,
    squared_distances,
    widen,
)


def instance_relation_loss(
    student: Tensor, teacher: Tensor, centers: Tensor | None = None, beta: float = 0.0
) -> Tensor:
    """Squared distance to the teacher's embedding, softened towards the identity centre; averaged over the batch.

    Args:
        student: embeddings (B, D) of unit length.
        teacher: embeddings (B, D) of unit length of the same images.
        centers: identity centre of each sample (B, D); required for `beta` > 0.
        beta: weight of the centre in the target, which is scaled to unit length; in [0, 1], 0 is the hard loss.

    Raises:
        ValueError: shapes differ, `beta` is outside [0, 1], or centres are missing.
    """
    check_beta(beta)
    _check_shapes(student, teacher, same_dimension=True)
    student, target = widen(student), widen(teacher.detach())
    if beta > 0:
        if centers is None:
            raise ValueError(
                f"beta = {beta} needs the identity centres: pass centers of shape {tuple(teacher.shape)}, or beta = 0"
            )
        if centers.shape != teacher.shape:
            raise ValueError(f"expected one centre per sample, {tuple(teacher.shape)}, got {tuple(centers.shape)}")
        target = F.normalize(torch.lerp(target, centers.detach().to(target.dtype), beta), dim=1)
    return (student - target).square().sum(1).mean()


def pair_relation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Distance-wise relational distillation loss (RKD-D [1]).

    Pairwise distances are divided by their batch mean and compared over all pairs of different images. The loss is
    invariant to rotation, translation and scaling of either space. Coincident pairs have distance 0 and contribute no
    gradient through it.

    Args:
        student: embeddings (B, D).
        teacher: embeddings (B, D') of the same images in the same order.

    Returns:
        Scalar loss; 0 for a batch of one. Differentiable once.

    Raises:
        ValueError: the batch sizes differ.
    """
    _check_shapes(student, teacher)
    ours, theirs = (squared_distances(embedding) for embedding in (student, teacher.detach()))
    loss: Tensor = DistanceDifference.apply(ours, theirs)  # type: ignore[no-untyped-call]
    return loss.to(loss_dtype(student))


def triplet_relation_loss(
    student: Tensor, teacher: Tensor, anchors: slice | None = None, max_anchors: int | None = None, step: int = 0
) -> Tensor:
    """Angle-wise relational distillation loss (RKD-A [1]), in O(B^2) memory.

    Angle cosines are compared over all ordered triples of different images. The loss is invariant to rotation,
    translation and scaling of either space. Triples with coincident images contribute 0, which bounds the gradient
    (`deocc.losses.distances.COINCIDENT`).

    All anchors take O(B^3) time. With V = `max_anchors` they are split into n = ceil(B / V) interleaved subsets, of
    which step `step` uses one, in O(V B^2) time. The result is n times the sum over that subset, an unbiased estimate:
    value and gradient averaged over n consecutive steps are exactly those of the full loss.

    Args:
        student: embeddings (B, D).
        teacher: embeddings (B, D') of the same images in the same order.
        anchors: forward slice of the images at which angles are compared, with arms to all images; None takes all. The
            losses of slices that partition the batch sum to the full loss.
        max_anchors: largest number of these anchors to use; None uses all.
        step: index of the subset, modulo n; for example the training step.

    Returns:
        Scalar loss; 0 for fewer than three images. Differentiable once.

    Raises:
        ValueError: the batch sizes differ, or `max_anchors` is not positive.
    """
    _check_shapes(student, teacher)
    chosen, subsets = range(len(student))[anchors or slice(None)], 1
    if max_anchors is not None:
        if max_anchors < 1:
            raise ValueError(f"max_anchors must be a positive number of anchors or None, got {max_anchors}")
        subsets = max(1, math.ceil(len(chosen) / max_anchors))
        chosen = chosen[step % subsets :: subsets]
    # Angles do not depend on the scale, so the mean that divides the squared distances needs no gradient.
    squares = (squared_distances(embedding) for embedding in (student, teacher.detach()))
    relative = (each / each.detach().mean().clamp_min(torch.finfo(each.dtype).tiny) for each in squares)
    ours, theirs = (each.to(loss_dtype(student)) for each in relative)
    with torch.autocast(student.device.type, enabled=False):
        loss: Tensor = AngleDifference.apply(ours, theirs, chosen)  # type: ignore[no-untyped-call]
    return subsets * loss


def prediction_relation_loss(
    student: Tensor, teacher: Tensor, centers: Tensor, scale: float, temperature: float
) -> Tensor:
    """KL divergence [2] between the identity predictions of teacher and student, averaged over the batch.

    Predictions are softmax similarities to the identity centres.

    Args:
        student: embeddings (B, D).
        teacher: embeddings (B, D) of the same images.
        centers: identity centres (K, D).
        scale: factor gamma > 0 from similarity to logit.
        temperature: T > 0, which softens both predictions.

    Raises:
        ValueError: shapes differ, or `scale` or `temperature` is not positive.
    """
    _check_shapes(student, teacher, same_dimension=True)
    if centers.ndim != 2 or centers.shape[1] != teacher.shape[1]:
        raise ValueError(f"expected identity centres of shape (K, {teacher.shape[1]}), got {tuple(centers.shape)}")
    check_positive(scale=scale, temperature=temperature)
    centers = widen(centers.detach())
    with torch.autocast(student.device.type, enabled=False):
        student_logits, teacher_logits = (
            embedding.to(centers.dtype) @ centers.T * (scale / temperature) for embedding in (student, teacher.detach())
        )
        ours, theirs = F.log_softmax(student_logits, dim=1), F.log_softmax(teacher_logits, dim=1)
        return F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2


def check_beta(beta: float) -> None:
    """Raise ValueError unless beta is in [0, 1]."""
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must be in [0, 1], got {beta}")


def _check_shapes(student: Tensor, teacher: Tensor, same_dimension: bool = False) -> None:
    same_batch = student.ndim == teacher.ndim == 2 and len(student) == len(teacher)
    if not same_batch or (same_dimension and student.shape != teacher.shape):
        expected = "(B, D) of one shape" if same_dimension else "(B, D) and (B, D') of one batch size"
        raise ValueError(
            f"expected student and teacher embeddings {expected}, got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
