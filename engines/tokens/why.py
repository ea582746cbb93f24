"""Why a prompt's ids are not known; the names are labels of a metric."""

from enum import StrEnum

__all__ = ["UnknownError", "Why"]


class Why(StrEnum):
    """What stood between a request and its ids."""

    PATH = "path"
    """A path whose prompts are not rebuilt here."""
    SIZE = "size"
    """The body, or the prompt made of it, is over a limit."""
    BODY = "body"
    """No JSON object, or not what an engine would take."""
    BATCH = "batch"
    """More than one prompt."""
    MEDIA = "media"
    """Images, audio, video, embeddings."""
    OPTION = "option"
    """A field that changes the prompt in a way not rebuilt here: truncation, an own template."""
    NO_TEMPLATE = "no_template"
    """The model has none, or its engine does not use it."""
    TEMPLATE = "template"
    """The template failed, or refused the conversation."""
    CLOCK = "clock"
    """The template writes the time of day."""
    FAULT = "fault"
    """Anything else that was raised."""


class UnknownError(Exception):
    """The ids of this request are not known."""

    def __init__(self, why: Why) -> None:
        super().__init__(why.value)
        self.why = why
