"""A model that generates nothing: two tensors in, their sum out."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self._sum(request) for request in requests]

    def _sum(self, request):
        a, b = (pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in "AB")
        return pb_utils.InferenceResponse([pb_utils.Tensor("SUM", a + b)])
