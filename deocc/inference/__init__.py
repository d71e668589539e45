"""From a photo to an answer: photos, faces, the trained pipeline, galleries, export."""

import deocc._torchvision  # noqa: F401  # before Lightning
