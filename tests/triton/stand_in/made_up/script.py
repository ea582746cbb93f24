"""What a prompt asks a stand-in to do, beside answering: `<made-up delay_s=0.05 fail_at=3>`."""

import dataclasses
import re

_MARK = re.compile(r"<made-up([^>]*)>")


@dataclasses.dataclass(frozen=True)
class Script:
    """All positions count generated tokens."""

    # Between two responses.
    delay_s: float = 0.0
    # The request fails, or hangs until it is cancelled, once it has so many.
    fail_at: int = -1
    hang_at: int = -1
    # The answer ends by itself.
    end_at: int = -1
    per_response: int = 1
    # `words`; `count`: 0, 1, 2 and so on; `letters`: beyond ASCII, so tokens are parts of letters.
    text: str = "words"

    @classmethod
    def read(cls, prompt: str, delay_s: float) -> "Script":
        """As the prompt's last mark has it; a key that no script has is an error."""
        script = cls(delay_s=delay_s)
        for mark in _MARK.findall(prompt):
            script = dataclasses.replace(cls(delay_s=delay_s), **cls._values(mark))
        return script

    @classmethod
    def _values(cls, mark: str) -> dict[str, object]:
        kinds = {field.name: field.type for field in dataclasses.fields(cls)}
        pairs = (pair.split("=") for pair in mark.split())
        return {key: kinds[key](value) for key, value in pairs}
