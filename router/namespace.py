"""What sets prompts of equal tokens apart: model, LoRA adapter, cache salt."""

__all__ = ["namespace"]


def namespace(model: str, lora: str = "", salt: str = "") -> bytes:
    """The bytes whose `namespace_root` is the parent of first blocks.

    Two namespaces are equal only if all three are: each stands behind its own length. An adapter
    or a salt that is absent is the empty one.
    """
    parts = [part.encode("utf-8", "surrogatepass") for part in (model, lora, salt)]
    return b"".join(len(part).to_bytes(4, "little") + part for part in parts)
