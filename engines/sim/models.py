"""The model names an engine answers to: the served model, its aliases, its LoRA adapters."""

from __future__ import annotations

from dataclasses import dataclass

from engines.sim.errors import ApiError, not_found_model

__all__ = ["Model", "ModelTable"]


@dataclass(frozen=True, slots=True)
class Model:
    """A name that can be asked for. `adapter` is empty for the base model."""

    name: str
    adapter: str
    root: str


class ModelTable:
    """Names in the order `/v1/models` lists them. Adapters come and go at run time."""

    def __init__(
        self, base: tuple[str, ...], adapters: tuple[str, ...], context_tokens: int
    ) -> None:
        self._base = base
        self._context_tokens = context_tokens
        self._models = {name: Model(name, "", base[0]) for name in base}
        for name in adapters:
            self._models[name] = Model(name, name, name)

    def resolve(self, name: object) -> Model:
        """The model of that name; the served one for None or "". Raises ApiError 404."""
        if not name:
            return self._models[self._base[0]]
        found = self._models.get(name) if isinstance(name, str) else None
        if found is None:
            raise not_found_model(str(name), ", ".join(self._base))
        return found

    def load(self, name: str, path: str, in_place: bool) -> None:
        """Add an adapter. Raises ApiError if its name is taken, unless it is to be replaced."""
        if not name or not path:
            message = "Both 'lora_name' and 'lora_path' must be provided."
            raise ApiError(400, message, "InvalidUserInput")
        if name in self._models and not in_place:
            message = (
                f"The lora adapter '{name}' has already been loaded. If you want to load the "
                "adapter in place, set 'load_inplace' to True."
            )
            raise ApiError(400, message, "InvalidUserInput")
        self._models[name] = Model(name, name, path)

    def unload(self, name: str) -> None:
        """Remove an adapter. Raises ApiError 404 if there is none of that name."""
        model = self._models.get(name)
        if model is None or not model.adapter:
            message = f"The lora adapter '{name}' cannot be found."
            raise ApiError(404, message, "NotFoundError")
        del self._models[name]

    def listing(self, created: int) -> dict[str, object]:
        """The body of `/v1/models`."""
        data = [self.card(model, created) for model in self._models.values()]
        return {"object": "list", "data": data}

    def card(self, model: Model, created: int) -> dict[str, object]:
        """One model as `/v1/models` shows it."""
        permission = {
            "id": f"modelperm-{abs(hash((model.name, created))):016x}"[:26],
            "object": "model_permission",
            "created": created,
            "allow_create_engine": False,
            "allow_sampling": True,
            "allow_logprobs": True,
            "allow_search_indices": False,
            "allow_view": True,
            "allow_fine_tuning": False,
            "organization": "*",
            "group": None,
            "is_blocking": False,
        }
        return {
            "id": model.name,
            "object": "model",
            "created": created,
            "owned_by": "vllm",
            "root": model.root,
            "parent": self._base[0] if model.adapter else None,
            "max_model_len": None if model.adapter else self._context_tokens,
            "permission": [permission],
        }
