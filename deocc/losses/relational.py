"""Relational distillation: the student, on completed faces, keeps the relations that the teacher sees between the clean faces.

With s the student's embeddings, t the teacher's of the same images, C_k the identity centres and h = Huber_1:

    instance    mean_i |s_i - tau_i|^2,  tau = (1 - beta) t + beta C_k
    pair        mean_{i != j} h(D^s_ij / mu^s - D^t_ij / mu^t),  D_ij = |e_i - e_j|,  mu = mean_{i != j} D_ij
    triplet     mean_{i, j, k different} h(cos^s(i; j, k) - cos^t(i; j, k)),  the angle at i between e_j - e_i and e_k - e_i
    prediction  T^2 KL(softmax(gamma t.C / T) || softmax(gamma s.C / T))

The gradient flows to the student only; teacher and centres get none. All are computed in float32 or better whatever the autocast state; an
embedding that arrives in bf16 has lost its close distances already, so take embeddings out of autocast before they are rounded.

[0] Li et al., "Look Through Masks", ACM MM 2020, arXiv 2409.12385: instance-, pair- and triplet-wise relations, the identity-centred
    softened instance loss, predictions beside features. Its formulas were not readable; the exact forms, beta and gamma are OURS.
[1] Park et al., "Relational Knowledge Distillation", CVPR 2019: the pair (RKD-D) and triplet (RKD-A) losses; code github.com/lenscloth/RKD,
    whose mean also runs over i = j. Ours runs over different images only.
[2] Hinton et al., "Distilling the Knowledge in a Neural Network", 2015: the softened KL and its factor T^2.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deocc.losses.distances import angle_difference, distances, loss_dtype, squared_distances, widen


def instance_relation_loss(
    student: Tensor, teacher: Tensor, centers: Tensor | None = None, beta: float = 0.0, normalize: bool = True
) -> Tensor:
    """Mean over the batch of |s - tau|^2: hard at beta = 0, softened towards the identity's centre above.

    Args:
        student: (B, D).
        teacher: (B, D).
        centers: (B, D), each sample's identity centre; needed where beta > 0.
        beta: share of the centre in the target, in [0, 1].
        normalize: bring the mixed target back to unit length, as embeddings of unit length need; at beta = 0 nothing is mixed.

    Returns:
        Scalar.

    Raises:
        ValueError: shapes differ, beta is outside [0, 1], or centres are missing.
    """
    _check_beta(beta)
    _check_shapes(student, teacher, same_dimension=True)
    student, target = widen(student), widen(teacher.detach())
    if beta > 0:
        if centers is None:
            raise ValueError(
                f"beta = {beta} needs the identity centres: pass centers of shape {tuple(teacher.shape)}, or beta = 0"
            )
        if centers.shape != teacher.shape:
            raise ValueError(f"expected one centre a sample, {tuple(teacher.shape)}, got {tuple(centers.shape)}")
        target = torch.lerp(target, centers.detach().to(target.dtype), beta)
        target = F.normalize(target, dim=1) if normalize else target
    return (student - target).square().sum(1).mean()


def pair_relation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """RKD-D [1]: distances in units of their batch's mean, compared over all pairs of different images.

    Does not change when either space is rotated, shifted or scaled. A coincident pair has distance 0 and takes no gradient from it.

    Args:
        student: (B, D).
        teacher: (B, D'), the same images in the same order; the dimension may differ.

    Returns:
        Scalar; 0 for one image.

    Raises:
        ValueError: the batches differ in size.
    """
    _check_shapes(student, teacher)
    pairs = max(1, len(student) * (len(student) - 1))
    ours, theirs = (_relative_distances(embedding, pairs) for embedding in (student, teacher.detach()))
    return (F.huber_loss(ours, theirs, reduction="sum") / pairs).to(loss_dtype(student))


def triplet_relation_loss(
    student: Tensor,
    teacher: Tensor,
    chunk_size: int | None = None,
    vertices: slice | None = None,
    max_vertices: int | None = None,
    turn: int = 0,
) -> Tensor:
    """RKD-A [1]: cosines of the angles at every vertex, compared over all ordered triples of three different images.

    Does not change when either space is rotated, shifted or scaled. Memory is O(B^2). A triple in which an image coincides with the vertex
    has no angle and adds nothing, which bounds the gradient (see `deocc.losses.distances.COINCIDENT`).

    Time is O(B^3); `max_vertices` makes it O(V B^2) by an unbiased estimate (OURS). The vertices fall into n = ceil(B / V) interleaved
    shares, and the estimate is n times the sum at one of them: over n consecutive turns, or a turn drawn evenly, its mean is the whole loss
    and the mean of its gradients is the whole gradient, exactly.

    Args:
        student: (B, D).
        teacher: (B, D'), the same images in the same order; the dimension may differ.
        chunk_size: vertices taken at a time, for memory against speed; None picks it from B and the device. Does not change the value.
        vertices: the images, a forward slice, at which angles are taken, between all images; None takes all. The losses at slices that
            cover the batch once sum to the whole one.
        max_vertices: estimate from so many of these vertices at most; None takes them all.
        turn: which share of them to take, counted round; for instance the number of the training step.

    Returns:
        Scalar; 0 for one or two images. Differentiable once.

    Raises:
        ValueError: the batches differ in size, or the chunk size or the number of vertices is not positive.
    """
    _check_shapes(student, teacher)
    taken, shares = _share_of_vertices(len(student), vertices, max_vertices, turn)
    dtype = loss_dtype(student)
    ours, theirs = (_relative_squares(embedding).to(dtype) for embedding in (student, teacher.detach()))
    return shares * angle_difference(ours, theirs, chunk_size, taken)


def prediction_relation_loss(
    student: Tensor, teacher: Tensor, centers: Tensor, scale: float, temperature: float
) -> Tensor:
    """Softened KL [2] between the identities that teacher and student see, by their similarity to the identity centres.

    Args:
        student: (B, D).
        teacher: (B, D).
        centers: (K, D), the centre of every identity.
        scale: gamma, which turns similarities into logits.
        temperature: T > 0, which softens both predictions.

    Returns:
        Scalar, mean over the batch.

    Raises:
        ValueError: shapes differ, or scale or temperature is not positive.
    """
    _check_shapes(student, teacher, same_dimension=True)
    if centers.ndim != 2 or centers.shape[1] != teacher.shape[1]:
        raise ValueError(f"expected identity centres of shape (K, {teacher.shape[1]}), got {tuple(centers.shape)}")
    _check_positive(scale=scale, temperature=temperature)
    centers = widen(centers.detach())
    with torch.autocast(student.device.type, enabled=False):
        ours, theirs = (
            F.log_softmax(embedding.to(centers.dtype) @ centers.T * (scale / temperature), dim=1)
            for embedding in (student, teacher.detach())
        )
        return F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2


class InstanceRelationLoss(nn.Module):
    """`instance_relation_loss` with a fixed beta.

    Raises:
        ValueError: beta is outside [0, 1].
    """

    def __init__(self, beta: float = 0.0, normalize: bool = True) -> None:
        super().__init__()
        _check_beta(beta)
        self.beta, self.normalize = beta, normalize

    def forward(self, student: Tensor, teacher: Tensor, centers: Tensor | None = None) -> Tensor:
        """See `instance_relation_loss`."""
        return instance_relation_loss(student, teacher, centers, self.beta, self.normalize)


class PairRelationLoss(nn.Module):
    """`pair_relation_loss` as a module."""

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """See `pair_relation_loss`."""
        return pair_relation_loss(student, teacher)


class TripletRelationLoss(nn.Module):
    """`triplet_relation_loss` with a fixed chunk size and number of vertices."""

    def __init__(self, chunk_size: int | None = None, max_vertices: int | None = None) -> None:
        super().__init__()
        self.chunk_size, self.max_vertices = chunk_size, max_vertices

    def forward(self, student: Tensor, teacher: Tensor, turn: int = 0) -> Tensor:
        """See `triplet_relation_loss`."""
        return triplet_relation_loss(student, teacher, self.chunk_size, max_vertices=self.max_vertices, turn=turn)


class PredictionRelationLoss(nn.Module):
    """`prediction_relation_loss` with a fixed scale and temperature.

    Raises:
        ValueError: scale or temperature is not positive.
    """

    def __init__(self, scale: float, temperature: float) -> None:
        super().__init__()
        _check_positive(scale=scale, temperature=temperature)
        self.scale, self.temperature = scale, temperature

    def forward(self, student: Tensor, teacher: Tensor, centers: Tensor) -> Tensor:
        """See `prediction_relation_loss`."""
        return prediction_relation_loss(student, teacher, centers, self.scale, self.temperature)


def _relative_distances(embedding: Tensor, pairs: int) -> Tensor:
    """(B, B) distances divided by their mean over the `pairs` ordered pairs of different images."""
    lengths = distances(squared_distances(embedding))
    return lengths / (lengths.sum() / pairs).clamp_min(torch.finfo(lengths.dtype).tiny)


def _relative_squares(embedding: Tensor) -> Tensor:
    """(B, B) squared distances divided by their mean, which is taken as constant: angles do not depend on it."""
    squared = squared_distances(embedding)
    return squared / squared.detach().mean().clamp_min(torch.finfo(squared.dtype).tiny)


def _share_of_vertices(
    size: int, vertices: slice | None, max_vertices: int | None, turn: int
) -> tuple[slice | None, int]:
    """Every n-th of a batch's vertices, at most `max_vertices`, and n; raise ValueError unless that is a positive number or None."""
    if max_vertices is None:
        return vertices, 1
    if max_vertices < 1:
        raise ValueError(f"max_vertices must be a positive number of vertices or None, got {max_vertices}")
    among = range(size)[vertices or slice(None)]
    shares = max(1, math.ceil(len(among) / max_vertices))
    taken = among[turn % shares :: shares]
    return slice(taken.start, taken.stop, taken.step), shares


def _check_shapes(student: Tensor, teacher: Tensor, same_dimension: bool = False) -> None:
    """Raise ValueError unless both are (B, D) of one B and, where asked, of one D."""
    fits = student.ndim == teacher.ndim == 2 and len(student) == len(teacher)
    if not fits or (same_dimension and student.shape != teacher.shape):
        allowed = "(B, D) of one shape" if same_dimension else "(B, D) and (B, D') of one batch size"
        raise ValueError(
            f"expected student and teacher embeddings {allowed}, got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )


def _check_beta(beta: float) -> None:
    """Raise ValueError unless beta is a share."""
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must lie in [0, 1], got {beta}")


def _check_positive(**values: float) -> None:
    """Raise ValueError for the first named value that is not positive."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
