"""The trained system as one object: pretrained, or from a model folder, a run, a checkpoint or the Hugging Face hub."""

from deocc.apps.pipeline.callback import ModelFolderCallback
from deocc.apps.pipeline.folder import pretrained_folder, read_model, write_model
from deocc.apps.pipeline.loading import load
from deocc.apps.pipeline.network import FaceNetwork, FaceOutput
from deocc.apps.pipeline.pipeline import Photo, Pipeline
from deocc.apps.pipeline.verdict import Verdict, decide

__all__ = [
    "FaceNetwork",
    "FaceOutput",
    "ModelFolderCallback",
    "Photo",
    "Pipeline",
    "Verdict",
    "decide",
    "load",
    "pretrained_folder",
    "read_model",
    "write_model",
]
