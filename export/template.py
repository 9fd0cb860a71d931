"""The chat template, rendered once at export into the text around a question."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer

from ..bundle.manifest import Template
from ..core.errors import DyCokeError
from .chat_template import ChatTemplate

_QUESTION = "the-question-stands-here"
# What a template might change on the way: space at the ends, characters of HTML and of Jinja.
_AWKWARD = ' \n<b>"What\'s" & {{ why }} {% of %} \u00e9\t\u4f60\u597d?\n '


def render_template(template: ChatTemplate, tokenizer: Tokenizer) -> Template:
    """Splits the rendered template at the video and at the question.

    tokenizer: the bundle's. It counts the tokens before the video. Raises DyCokeError for a
    template that has not one place for each, and for one that changes the question.
    """
    _refuse_text_template(template)
    with_video, alone = _render(template, _QUESTION, video=True), _render(template, _QUESTION)
    prefix, _, rest = with_video.partition(template.video)
    middle, _, suffix = rest.partition(_QUESTION)
    text_prefix, _, text_suffix = alone.partition(_QUESTION)
    counts = [with_video.count(template.video), alone.count(_QUESTION)]
    counts += [with_video.count(_QUESTION), rest.count(_QUESTION)]
    if counts != [1, 1, 1, 1] or suffix != text_suffix:
        raise DyCokeError(
            f"{template.origin}: renders a video and a question as {with_video!r} and a question "
            f"alone as {alone!r}; supported: one {template.video}, then the question, the same "
            "ending"
        )
    awkward = prefix + template.video + middle + _AWKWARD + suffix
    if (rendered := _render(template, _AWKWARD, video=True)) != awkward:
        raise DyCokeError(
            f"{template.origin}: changes the question {_AWKWARD!r}: {rendered!r}, which is not "
            f"supported; expected {awkward!r}"
        )
    prefix, middle = _beside(tokenizer, template.video, prefix, middle)
    _check_pieces(tokenizer, template, (prefix, middle, suffix))
    return Template(
        prefix=prefix,
        middle=middle,
        suffix=suffix,
        text_prefix=text_prefix,
        span_start=len(_ids(tokenizer, prefix)),
    )


def _render(template: ChatTemplate, question: str, *, video: bool = False) -> str:
    """One turn of a user."""
    parts = [{"type": "video"}] * video + [{"type": "text", "text": question}]
    return template.render([{"role": "user", "content": parts}])


def _refuse_text_template(template: ChatTemplate) -> None:
    """A text model's template takes a text for what a user says, and knows no video."""
    try:
        if template.video in _render(template, _QUESTION, video=True):
            return
        reason = f"it writes no {template.video} for a video"
    except DyCokeError as error:
        try:
            text = template.render([{"role": "user", "content": _QUESTION}])
        except DyCokeError:
            text = ""
        if _QUESTION not in text:
            raise error from None
        reason = "it takes a text where a video and a question are a list"
    raise DyCokeError(
        f"{template.origin}: the chat template of a text model ({reason}); copy "
        "chat_template.jinja or chat_template.json from the model that this one was trained from"
    )


def _beside(tokenizer: Tokenizer, video: str, prefix: str, middle: str) -> tuple[str, str]:
    """The text around the video, without the space that the video's token takes with it."""
    known = tokenizer.get_added_tokens_decoder().values()
    token = next((token for token in known if token.content == video), AddedToken(video))
    return prefix.rstrip() if token.lstrip else prefix, middle.lstrip() if token.rstrip else middle


def _check_pieces(
    tokenizer: Tokenizer, template: ChatTemplate, pieces: tuple[str, str, str]
) -> None:
    """The ids of the pieces have to be those of the whole, where the tokenizer knows the video."""
    video = tokenizer.token_to_id(template.video)
    if video is None:
        return
    prefix, middle, suffix = pieces
    for question in (_QUESTION, _AWKWARD.strip()):
        whole = _ids(tokenizer, _render(template, question, video=True))
        if whole != [
            *_ids(tokenizer, prefix), video, *_ids(tokenizer, middle + question + suffix)
        ]:  # fmt: skip
            raise DyCokeError(
                f"{template.origin}: the tokenizer joins text across {template.video}, which is "
                "not supported; it has to be an added token"
            )


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)
