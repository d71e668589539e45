"""What every command does with ordinary photos: find the files, read them, find the faces, paste results back, say what became of each."""

from deocc.apps.photos.aligned import list_alignments
from deocc.apps.photos.arguments import PhotoParser, finder_of
from deocc.apps.photos.batch import work_through
from deocc.apps.photos.faces import DEFAULT_DETECTOR, FaceFinder, NoFaceError, PhotoFace
from deocc.apps.photos.files import FoundPhoto, find_photos
from deocc.apps.photos.out import alone_in, check_out
from deocc.apps.photos.outcomes import Outcome, OutcomeFile
from deocc.apps.photos.pasting import paste_back, weight_in_photo
from deocc.apps.photos.reading import read_bytes, read_photo
from deocc.apps.photos.writing import OutputError, read_mark, save_png

__all__ = [
    "DEFAULT_DETECTOR",
    "FaceFinder",
    "FoundPhoto",
    "NoFaceError",
    "Outcome",
    "OutcomeFile",
    "OutputError",
    "PhotoFace",
    "PhotoParser",
    "alone_in",
    "check_out",
    "find_photos",
    "finder_of",
    "list_alignments",
    "paste_back",
    "read_bytes",
    "read_mark",
    "read_photo",
    "save_png",
    "weight_in_photo",
    "work_through",
]
