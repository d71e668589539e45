"""Independent reference implementations: plain loops over the definitions, in float64."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def huber(difference: Tensor) -> Tensor:
    """Huber_1 of a scalar."""
    size = difference.abs()
    return size**2 / 2 if float(size.detach()) <= 1 else size - 0.5


def pair_relation(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over ordered pairs of different images of the Huber loss between relative distances."""
    student, teacher = student.double(), teacher.double()
    pairs = [(i, j) for i in range(len(student)) for j in range(len(student)) if i != j]
    ours = [_length(student[i] - student[j]) for i, j in pairs]
    theirs = [_length(teacher[i] - teacher[j]) for i, j in pairs]
    our_mean, their_mean = sum(ours) / len(pairs), sum(theirs) / len(pairs)
    return sum(
        (huber(a / our_mean - b / their_mean) for a, b in zip(ours, theirs, strict=True)), torch.zeros(())
    ) / len(pairs)


def triplet_relation(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over ordered triples of different images of the Huber loss between angle cosines; coincident ones add 0."""
    student, teacher = student.double(), teacher.double()
    total, count, size = torch.zeros((), dtype=torch.float64), 0, range(len(student))
    for i, j, k in ((i, j, k) for i in size for j in size for k in size if len({i, j, k}) == 3):
        count += 1
        arms = [embedding[other] - embedding[i] for embedding in (student, teacher) for other in (j, k)]
        if all(float(arm.detach().norm()) > 0 for arm in arms):
            total = total + huber(_angle_cosine(arms[0], arms[1]) - _angle_cosine(arms[2], arms[3]))
    return total / count


def prediction_relation(student: Tensor, teacher: Tensor, centers: Tensor, scale: float, temperature: float) -> float:
    """T^2 KL(teacher || student) between softened predictions, averaged over the batch."""
    total = 0.0
    for ours, theirs in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = (_softmax([scale * _dot(e, c) / temperature for c in centers.tolist()]) for e in (theirs, ours))
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return temperature**2 * total / len(student)


def margin_cosine(cosine: float, margin_type: str, margin: float) -> float:
    """Cosine of the true identity with margin, computed from the angle."""
    if margin_type == "softmax":
        return cosine
    if margin_type == "cosface":
        return cosine - margin
    theta = math.acos(cosine)
    return math.cos(theta + margin) if theta + margin <= math.pi else cosine - margin * math.sin(margin)


def identity_loss(cosine: Tensor, identity: Sequence[int], margin_type: str, margin: float, scale: float) -> float:
    """Cross-entropy of scaled cosines with a margin, averaged over the batch."""
    total = 0.0
    for row, own in zip(cosine.tolist(), identity, strict=True):
        logits = [
            scale * (margin_cosine(value, margin_type, margin) if k == own else value) for k, value in enumerate(row)
        ]
        total -= math.log(_softmax(logits)[own])
    return total / len(identity)


def masked_l1(
    generated_face: Tensor, face: Tensor, mask: Tensor, covered_weight: float, visible_weight: float
) -> float:
    """Mean over covered and over visible pixels of each image, then over images that have any."""
    result = 0.0
    for weight, wanted in ((covered_weight, 1.0), (visible_weight, 0.0)):
        means = []
        for b in range(len(face)):
            errors = [
                abs(float(generated_face[b, c, y, x]) - float(face[b, c, y, x]))
                for c in range(face.shape[1])
                for y in range(face.shape[2])
                for x in range(face.shape[3])
                if float(mask[b, 0, y, x]) == wanted
            ]
            means += [sum(errors) / len(errors)] if errors else []
        result += weight * sum(means) / len(means) if means else 0.0
    return result


def local_chroma(generated_face: Tensor, face: Tensor, mask: Tensor) -> float:
    """Distance of mean chroma over the covered pixels of each 8 x 8 cell, weighted by their number."""
    means, channels = [], range(face.shape[1])
    for b in range(len(face)):
        error = covered = 0.0
        for y in range(0, face.shape[2] - 7, 4):
            for x in range(0, face.shape[3] - 7, 4):
                pixels = [(i, j) for i in range(y, y + 8) for j in range(x, x + 8) if float(mask[b, 0, i, j]) == 1]
                sums = [
                    sum(float(generated_face[b, c, i, j]) - float(face[b, c, i, j]) for i, j in pixels)
                    for c in channels
                ]
                error += sum(abs(each - sum(sums) / len(sums)) for each in sums) / len(sums)
                covered += len(pixels)
        means += [error / covered] if covered else []
    return sum(means) / len(means) if means else 0.0


def _length(vector: Tensor) -> Tensor:
    return vector.square().sum().sqrt()


def _angle_cosine(first: Tensor, second: Tensor) -> Tensor:
    return (first * second).sum() / (_length(first) * _length(second))


def _dot(first: Sequence[float], second: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(first, second, strict=True))


def _softmax(logits: Sequence[float]) -> list[float]:
    largest = max(logits)
    exponentials = [math.exp(logit - largest) for logit in logits]
    return [exponential / sum(exponentials) for exponential in exponentials]
