"""The demo page: two photos, a mask kind and a seed as input, an analysis as output."""

import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deocc.commands.demo.analysis import EXAMPLES, NO_MASK, Analyst, OrlGallery
from deocc.commands.demo.view import error_html, intro_html, result_html
from deocc.inference.faces import FaceFinder, PhotoFace
from deocc.inference.photos import read_photo
from deocc.masking import list_kinds
from deocc.messages import one_line

if TYPE_CHECKING:
    import gradio as gr

MAX_SEED: Final = 2**31 - 1
_SWEEP_SECONDS: Final = 30
_KEEP_SECONDS: Final = 600
"""Uploaded photos are deleted after ten minutes; Gradio looks for them every 30 s."""

_MAX_WAITING: Final = 20
"""Requests waiting for the model beyond this number are refused."""

_REPORTED_ERRORS = (ValueError, OSError, ImportError, RuntimeError, MemoryError)


class Answers:
    """Turns the page's inputs into HTML.

    Args:
        analyst: computes the content.
        finder: finds the faces.
        uploads: folder of uploaded files; no other file is read.
    """

    def __init__(self, analyst: Analyst, finder: FaceFinder, uploads: Path) -> None:
        self._analyst = analyst
        self._finder = finder
        self._uploads = uploads.resolve()

    def answer(
        self, photo: Mapping[str, Any] | None, second: Mapping[str, Any] | None, kind: str, seed: float | None
    ) -> str:
        """Return the result, or the message of an error, as HTML.

        Args:
            photo: `path` and `orig_name` of an uploaded file, as Gradio sends them; None = no photo.
            second: the photo to compare with.
            kind: a mask kind, or `NO_MASK`.
            seed: seed of the mask, an integer from 0 to `MAX_SEED`.
        """
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            try:
                if photo is None:
                    raise ValueError("no photo yet: drop one, choose a file, or take one with the camera")
                face = self._find_face(photo, "the photo")
                second_face = None if second is None else self._find_face(second, "the second photo")
                if not isinstance(seed, int | float) or not 0 <= seed <= MAX_SEED or seed != int(seed):
                    raise ValueError(f"the seed is {seed}: give a whole number from 0 to {MAX_SEED}")
                analysis = self._analyst.analyse(face, kind, int(seed), second_face)
            except _REPORTED_ERRORS as error:
                return error_html(one_line(error) or type(error).__name__)
        notes = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
        return result_html(analysis, notes)

    def _find_face(self, photo: Mapping[str, Any], default_name: str) -> PhotoFace:
        name = str(photo.get("orig_name") or default_name)
        try:
            path = (self._uploads / str(photo.get("path") or "")).resolve()
            if not path.is_relative_to(self._uploads):  # the path comes from the browser
                raise FileNotFoundError(path)
            content = path.read_bytes()
        except (OSError, ValueError):
            raise ValueError(f"{name} is no longer here, since photos are not kept: choose it again") from None
        return self._finder.find(read_photo(content, name), name)[0]


def build_page(answers: Answers, gallery: OrlGallery | None) -> "gr.Blocks":
    """Return the page, not yet served.

    Args:
        answers: computes the result.
        gallery: source of the example photos; None = no examples.

    Raises:
        ImportError: gradio is not installed.
    """
    import gradio as gr

    kinds = list_kinds()
    with gr.Blocks(title="deocc demo", analytics_enabled=False, delete_cache=(_SWEEP_SECONDS, _KEEP_SECONDS)) as page:
        gr.HTML(intro_html(gallery is not None))
        with gr.Row():
            photo, second = _photo_input("Photo"), _photo_input("Second photo (optional)")
        kind = gr.Radio(
            [NO_MASK, *kinds], value=kinds[0], label="Mask to draw on the photo (none: it may be masked already)"
        )
        with gr.Row(equal_height=True):
            seed = gr.Number(0, label="Seed: another one draws another mask", precision=0, minimum=0, maximum=MAX_SEED)
            button = gr.Button("Show", variant="primary", elem_id="show")
        example_buttons = []
        if gallery is not None:
            gr.HTML('<p class="deocc deocc-small">Examples: ORL faces of the validation people of the usual split.</p>')
            with gr.Row():
                example_buttons = [gr.Button(example.title, size="sm") for example in EXAMPLES]
        result = gr.HTML("", elem_id="result")

        inputs = [photo, second, kind, seed]
        private: dict[str, Any] = {"api_visibility": "private"}
        show: dict[str, Any] = {
            "fn": answers.answer,
            "inputs": inputs,
            "outputs": result,
            "preprocess": False,  # `Answers` reads the file itself, for its own error messages
            "concurrency_limit": 1,
            "concurrency_id": "model",
            "scroll_to_output": True,
            **private,
        }
        button.click(**show)
        if gallery is not None:
            for example_button, example in zip(example_buttons, EXAMPLES, strict=True):
                values = partial(_example_values, gallery, *example[1:])
                example_button.click(values, None, inputs, **private).then(**show)
    page.queue(max_size=_MAX_WAITING, api_open=False)
    return page  # type: ignore[no-any-return]


def _photo_input(label: str) -> "gr.Image":
    import gradio as gr

    return gr.Image(
        label=label,
        sources=["upload", "webcam"],
        type="filepath",
        format="png",
        height=260,
        buttons=[],
        placeholder="Drop a photo here, or press to choose a file",
    )


def _example_values(
    gallery: OrlGallery, photo: tuple[int, int], second: tuple[int, int], kind: str, seed: int
) -> tuple[Any, ...]:
    """Return the values of the page's inputs for an example."""
    return gallery.photo(*photo), gallery.photo(*second), kind, seed
