"""A small `train.rec` with `train.idx` and `property`, written from insightface's format, not with our reader."""

import struct
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from tests.fake_sets.faces import orl_face

MAGIC = struct.pack("<I", 0xCED7230A)


def record(data: bytes) -> bytes:
    """The record that holds `data`: in parts where the data hold the magic number at a multiple of four bytes."""
    cuts = [place for place in range(0, len(data) - 3, 4) if data[place : place + 4] == MAGIC]
    parts = [data[start:end] for start, end in zip([0, *(cut + 4 for cut in cuts)], [*cuts, len(data)], strict=True)]
    flags = [0] if len(parts) == 1 else [1, *[2] * (len(parts) - 2), 3]
    return b"".join(
        MAGIC + struct.pack("<I", flag << 29 | len(part)) + part + bytes(-len(part) % 4)
        for flag, part in zip(flags, parts, strict=True)
    )


def labelled(labels: list[float], data: bytes, number: int = 0) -> bytes:
    """`data` behind mxnet's header: one label inside the header, several behind it."""
    if len(labels) == 1:
        return struct.pack("<IfQQ", 0, labels[0], number, 0) + data
    return struct.pack("<IfQQ", len(labels), 0.0, number, 0) + struct.pack(f"<{len(labels)}f", *labels) + data


def jpeg(person: int, image: int, side: int = 112) -> bytes:
    """A face of ORL as a JPEG file."""
    buffer = BytesIO()
    Image.fromarray(orl_face(person, image, side, side)[0]).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_records(folder: Path, records: dict[int, bytes], name: str = "train") -> Path:
    """Write the records and their index; returns the .rec file."""
    folder.mkdir(parents=True, exist_ok=True)
    offset, lines = 0, []
    with (folder / f"{name}.rec").open("wb") as file:
        for key, data in records.items():
            lines.append(f"{key}\t{offset}\n")
            offset += file.write(record(data))
    (folder / f"{name}.idx").write_text("".join(lines))
    return folder / f"{name}.rec"


def write_record_file(folder: Path, people: int = 12, images: int = 3, side: int = 112) -> Path:
    """Draw a set in insightface's layout: record 0, the images, and each person's range of images.

    Args:
        folder: where, created if need be.
        people: 1-40.
        images: a person, 1-10.
        side: of the images in pixels.

    Returns:
        The .rec file; its index and property files lie beside it.
    """
    number = people * images
    records = {0: labelled([number + 1, number + people + 1], b"")}
    for key in range(1, number + 1):
        person, image = divmod(key - 1, images)
        records[key] = labelled([person, 1], jpeg(person, image, side), key)
    for person in range(people):
        key = number + 1 + person
        records[key] = labelled([1 + person * images, 1 + (person + 1) * images], b"", key)
    path = write_records(folder, records)
    (folder / "property").write_text(f"{people},{side},{side}\n")
    return path


def decoded(data: bytes) -> np.ndarray:
    """(H, W, 3) RGB pixels of an image file."""
    return np.asarray(Image.open(BytesIO(data)).convert("RGB"))
