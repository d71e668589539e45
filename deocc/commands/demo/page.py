"""The page: two photos, a kind of mask, a seed, and below them the answer."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from deocc.commands.demo.analysis import EXAMPLES, NO_MASK, Example, OrlGallery
from deocc.commands.demo.server import KEPT, MOST_SEED, Answers
from deocc.commands.demo.view import intro_html
from deocc.masking import list_kinds

if TYPE_CHECKING:
    import gradio as gr

_SWEEP, _KEPT = 30, int(KEPT)
"""Every so many seconds photos are deleted that were given more than so many seconds ago and never shown; the page says ten minutes. OURS.
"""

_WAITING: Final = 20
"""More requests than these, which wait for their turn one after the other, are refused. OURS."""


_PRIVATE: Final[dict[str, Any]] = {"api_visibility": "private"}
"""The page alone may call it."""


def build_page(answers: Answers, gallery: OrlGallery | None) -> "gr.Blocks":
    """The page, not served yet.

    Args:
        answers: what answers it.
        gallery: where its examples come from; None = no examples.

    Raises:
        ImportError: the package gradio is not installed.
    """
    import gradio as gr

    page = gr.Blocks(title="deocc demo", analytics_enabled=False, delete_cache=(_SWEEP, _KEPT))
    with page:
        gr.HTML(intro_html(gallery is not None))
        with gr.Row():
            photo, second = _photo("Photo"), _photo("Second photo (optional)")
        kind = gr.Radio(
            [NO_MASK, *list_kinds()],
            value=list_kinds()[0],
            label="Mask to draw on the photo (none: it may be masked already)",
        )
        with gr.Row(equal_height=True):
            seed = gr.Number(0, label="Seed: another one draws another mask", precision=0, minimum=0, maximum=MOST_SEED)
            button = gr.Button("Show", variant="primary", elem_id="show")
        examples = {} if gallery is None else _example_buttons(gallery)
        result = gr.HTML("", elem_id="result")
        inputs = [photo, second, kind, seed]

        def show(first: Any, other: Any, chosen: str, number: Any, request: gr.Request) -> str:
            return answers.answer(first, other, chosen, number, _client(request))

        asking: dict[str, Any] = {
            "preprocess": False,
            "concurrency_limit": 1,
            "concurrency_id": "model",
            "scroll_to_output": True,
            **_PRIVATE,
        }
        button.click(show, inputs, result, **asking)
        for its_button, its_photos in examples.items():
            # Shown by its pixels: a file is deleted when it is read, and the browser fetches an example's just then.
            its_button.click(its_photos, None, inputs, **_PRIVATE).then(
                _answer_to(answers, its_photos), None, result, **asking
            )
    page.queue(max_size=_WAITING, api_open=False)
    return page


def _photo(label: str) -> "gr.Image":
    import gradio as gr

    given = "Drop a photo here, or press to choose a file"
    return gr.Image(
        label=label,
        sources=["upload", "webcam"],
        type="filepath",
        format="png",
        height=260,
        buttons=[],
        placeholder=given,
    )


def _example_buttons(gallery: OrlGallery) -> "dict[gr.Button, Callable[[], tuple[Any, ...]]]":
    """A button for each example, with what puts its photos and choices on the page."""
    import gradio as gr

    gr.HTML('<p class="deocc deocc-small">Examples: ORL faces of the validation people of the usual split.</p>')
    with gr.Row():
        return {gr.Button(example.title, size="sm"): partial(_put, gallery, example) for example in EXAMPLES}


def _put(gallery: OrlGallery, example: Example) -> tuple[Any, ...]:
    return gallery.photo(*example.photo), gallery.photo(*example.second), example.kind, example.seed


def _answer_to(answers: Answers, photos: Callable[[], tuple[Any, ...]]) -> Callable[..., str]:
    import gradio as gr

    def answer(request: gr.Request) -> str:
        photo, second, kind, seed = photos()
        return answers.answer(photo, second, kind, seed, _client(request))

    return answer


def _client(request: "gr.Request") -> str:
    return request.client.host if request.client else ""
