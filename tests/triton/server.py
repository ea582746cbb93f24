"""One tritonserver process on loopback, over a model repository of its own.

Real: the server, its protocols, schedulers and Python backend. Made up (`stand_in`): what runs in
the place of the vLLM and TensorRT-LLM backends; `stand_in/made_up/script.py` has what a prompt can
ask of those.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.real.process import free_ports
from tests.real.server import EngineServer, ServerError
from tests.triton.environment import Installation

STAND_IN = Path(__file__).with_name("stand_in")
# What of a repository is loaded at the start, unless a test says otherwise.
TENSORRT_LLM = ("ensemble", "ensemble_early", "tensorrt_llm_bls")
MODELS = ("vllm_model", "vllm_early", *TENSORRT_LLM, "llmapi", "add", "narrow")
SHARED_MEMORY = Path("/dev/shm")


class Triton(EngineServer):
    """HTTP, gRPC and metrics on three consecutive ports, in this order, as Triton has them."""

    HEALTH_PATH = "/v2/health/ready"
    START_LIMIT_S = 120.0
    # Some streams that a test left behind end first.
    STOP_LIMIT_S = 8.0
    # Its tables of models and options.
    NOISE = r"^\+--|^\| "

    def __init__(
        self,
        installation: Installation,
        name: str,
        models: Sequence[str] = MODELS,
        flags: Sequence[str] = (),
    ) -> None:
        super().__init__("triton", name, free_ports(3))
        self.grpc_port, self.metrics_port = self.port + 1, self.port + 2
        self.grpc_address = f"127.0.0.1:{self.grpc_port}"
        self.metrics_url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        self.models = tuple(models)
        self.folder = Path(tempfile.mkdtemp(prefix="headgate-triton-"))
        self._region = f"headgate-{os.getpid()}-{self.port}-"
        self._lay_out(installation)
        self.command = [str(installation.server), *self._arguments(), *flags]
        self.environment = {
            **installation.variables,
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    @property
    def repository(self) -> Path:
        """Its own copy: a test may change it."""
        return self.folder / "models"

    def kill(self) -> None:
        super().kill()
        self._free_shared_memory()

    def freeze(self) -> None:
        """SIGSTOP, to the server itself: its models run on, and nobody hears of it."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def stop(self) -> None:
        super().stop()
        self._free_shared_memory()
        shutil.rmtree(self.folder, ignore_errors=True)

    def model_ready(self, model: str) -> bool:
        return self.answers(f"/v2/models/{model}/ready")

    def load(self, model: str, **parameters: str) -> None:
        """Returns when it is loaded; `ServerError` with the server's words if it cannot be."""
        self.post(f"/v2/repository/models/{model}/load", {"parameters": parameters})

    def unload(self, model: str) -> None:
        """Returns at once; what runs goes on."""
        self.post(f"/v2/repository/models/{model}/unload", {})

    def index(self) -> dict[str, str]:
        """The state of each model of the repository; of one that was never loaded it is ''."""
        models = json.loads(self.post("/v2/repository/index", {}))
        return {model["name"]: model.get("state", "") for model in models}

    def post(self, path: str, body: dict[str, Any], **headers: str) -> bytes:
        request = urllib.request.Request(
            f"{self.url}{path}", json.dumps(body).encode(), headers=headers
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            raise ServerError(f"{error.code} {error.read().decode()}") from None

    def running_requests(self) -> int:
        """In the made-up engines, whatever the server's own metrics say."""
        tensorrt_llm = self.metric("nv_trt_llm_request_metrics", 'request_type="active"')
        return int(self.metric("vllm:num_requests_running") + tensorrt_llm)

    def _arguments(self) -> list[str]:
        arguments = {
            "model-control-mode": "explicit",
            "model-repository": str(self.repository),
            "backend-directory": str(self.folder / "backends"),
            "allow-gpu-metrics": "false",
            "cuda-memory-pool-byte-size": "0:0",
            "pinned-memory-pool-byte-size": "0",
            # Else servers beside one another share their memory.
            "backend-config": f"python,shm-region-prefix-name={self._region}",
            "metrics-interval-ms": "100",
        }
        for front, port in (
            ("http", self.port),
            ("grpc", self.grpc_port),
            ("metrics", self.metrics_port),
        ):
            arguments |= {f"{front}-address": "127.0.0.1", f"{front}-port": str(port)}
        listed = [f"--{key}={value}" for key, value in arguments.items()]
        return listed + [f"--load-model={model}" for model in self.models]

    def _lay_out(self, installation: Installation) -> None:
        # The embedded Python writes into the folders of models.
        shutil.copytree(STAND_IN / "models", self.repository)
        backends = self.folder / "backends"
        shutil.copytree(STAND_IN / "backends", backends)
        for model in self.folder.rglob("model.py"):
            # The stub looks for modules beside it, and nowhere that it could be told of.
            (model.parent / "made_up").symlink_to(STAND_IN / "made_up")
        (backends / "python").symlink_to(installation.backends / "python")

    def _free_shared_memory(self) -> None:
        # A server that was killed leaves its regions.
        for region in SHARED_MEMORY.glob(f"{self._region}*"):
            with contextlib.suppress(FileNotFoundError):
                region.unlink()
