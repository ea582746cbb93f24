"""Requests and responses of Triton's Python backend, in plain values."""

import numpy as np
import triton_python_backend_utils as pb_utils

# TRITONSERVER_RESPONSE_COMPLETE_FINAL, which is not there while a configuration is completed.
FINAL = 1


def array(request, name: str):
    """An input as it is; None if the request does not have it."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def values(request, name: str) -> list:
    """All values of an input, flat."""
    found = array(request, name)
    return [] if found is None else found.reshape(-1).tolist()


def value(request, name: str, default=None):
    """The first value of an input."""
    return next(iter(values(request, name)), default)


def text(request, name: str, default: str | None = None) -> str | None:
    data = value(request, name)
    return default if data is None else data.decode()


def strings(name: str, items: list[str | bytes], shape=(-1,)):
    data = [item.encode() if isinstance(item, str) else item for item in items]
    return pb_utils.Tensor(name, np.array(data, dtype=np.object_).reshape(shape))


def numbers(name: str, items, kind):
    """`items` has the tensor's shape."""
    return pb_utils.Tensor(name, np.array(items, dtype=kind))


def response(*tensors):
    return pb_utils.InferenceResponse(output_tensors=list(tensors))


def failure(message: str, *tensors, code=None):
    error = pb_utils.TritonError(message) if code is None else pb_utils.TritonError(message, code)
    return pb_utils.InferenceResponse(output_tensors=list(tensors), error=error)


def cancelled(message: str):
    return failure(message, code=pb_utils.TritonError.CANCELLED)
