class Demand:
    def note_end(
        self, out_tokens: float, prompt_tokens: float = -1, prompt_bytes: float = -1
    ) -> None: ...
