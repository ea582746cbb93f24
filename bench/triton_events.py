"""What an event costs that comes from a model in Triton, against the obvious ways to do the same.

    python -m bench.triton_events [--streams 32] [--gap-ms 10] [--seconds 8] [--rounds 3]

A real Triton streams from a made-up model (see tests/triton), one token each `gap-ms` in every
stream, and three proxies take turns between it and gwbench: Headgate; `callbacks`, tritonclient's
streams with a callback each and json; `aio`, its generated stubs over grpc.aio and json. The last
two do nothing but translate: no routing, no counts, no errors. CPU time of all processes of a
proxy, pinned to one core, divided by the events that came out of it.
"""

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import uvloop

from bench import demo_engines, processes
from bench.gwbench import Load, free_ports
from bench.machine import describe
from bench.proxies import environment

__all__ = ["main"]

PROXIES = ("headgate", "callbacks", "aio")
N_TOKENS = 200
# Its own: the last event with the finish reason, and the end mark.
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: measure, print."""
    processes.exit_on_sigterm()
    parser = argparse.ArgumentParser(prog="python -m bench.triton_events", description=__doc__)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--gap-ms", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--play", choices=PROXIES[1:], help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--grpc-port", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.play:
        uvloop.run(_play(given.play, given.port, given.grpc_port))
    else:
        asyncio.run(_measure(given))
    return 0


async def _measure(given: argparse.Namespace) -> None:
    machine = describe()
    print(f"{machine.cpu}, {machine.cores} cores, load {machine.load_average}", flush=True)
    found: dict[str, list[float]] = {name: [] for name in PROXIES}
    async with demo_engines.start("triton") as engines:
        for _ in range(given.rounds):
            for name in PROXIES:
                figure = await asyncio.to_thread(_round, name, engines, given)
                found[name].append(figure)
    for name in PROXIES:
        share = median(
            one / plain for one, plain in zip(found[name], found["callbacks"], strict=True)
        )
        print(f"{name:10} {median(found[name]):6.1f} us per event, {share:.2f} x callbacks")


def _round(name: str, engines: demo_engines.Engines, given: argparse.Namespace) -> float:
    """CPU microseconds per event."""
    port, admin_port = free_ports(2)
    url = engines.arguments[1].partition("=")[2]
    if name == "headgate":
        command = ["-m", "headgate", "serve", "--port", str(port), "--admin-port", str(admin_port)]
        command += [*engines.arguments, "--log-level", "error"]
    else:
        grpc_port = int(url.rpartition(":")[2]) + 1
        command = ["-m", "bench.triton_events", "--play", name, "--port", str(port)]
        command += ["--grpc-port", str(grpc_port)]
    process = subprocess.Popen(
        ["taskset", "-c", "0", sys.executable, *command], env=environment(), start_new_session=True
    )
    try:
        _wait(name, port, engines.model)
        return _load(name, process.pid, port, engines.model, given)
    finally:
        processes.end_all([process])


def _wait(name: str, port: int, model: str) -> None:
    """Until it lists the model; those that only translate list none."""
    for _ in range(100):
        with contextlib.suppress(OSError):
            url = f"http://127.0.0.1:{port}/v1/models"
            with urllib.request.urlopen(url, timeout=3) as answer:
                if name != "headgate" or model in answer.read().decode():
                    return
        time.sleep(0.2)
    raise RuntimeError(f"{name} does not answer")


def _load(name: str, pid: int, port: int, model: str, given: argparse.Namespace) -> float:
    prompt = f"<made-up delay_s={given.gap_ms / 1000}>"
    body = {"model": model, "prompt": prompt, "stream": True, "max_tokens": N_TOKENS}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(body, file)
        file.flush()
        load = Load(
            port=port,
            body=Path(file.name),
            connections=given.streams,
            seconds=given.seconds,
            path="/v1/completions",
            want_events=N_TOKENS + 1,
        )
        # What is made once: connections, imports, the model's tokenizer.
        msgspec.structs.replace(load, seconds=1.0).run()
        before_s, start_s = processes.cpu_s(processes.tree(pid)), time.monotonic()
        run = load.run()
        took_s = time.monotonic() - start_s
        used_s = processes.cpu_s(processes.tree(pid)) - before_s
    n_events = run.ok * N_TOKENS
    figure = used_s / n_events * 1e6
    print(
        f"  {name:10} {figure:6.1f} us per event, {n_events / took_s:5.0f} events/s, "
        f"{run.bad} bad of {run.ok}",
        flush=True,
    )
    return figure


# -- the obvious ways


async def _play(how: str, port: int, grpc_port: int) -> None:
    server = await asyncio.start_server(
        _Callbacks(grpc_port).serve if how == "callbacks" else _Aio(grpc_port).serve,
        "127.0.0.1",
        port,
    )
    async with server:
        await server.serve_forever()


async def _request(reader: asyncio.StreamReader) -> dict[str, Any] | None:
    """A body; empty: there was none. None: no more requests."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
    except asyncio.IncompleteReadError:
        return None
    size = next(
        (
            int(line.partition(":")[2])
            for line in head.lower().split("\r\n")
            if line.startswith("content-length:")
        ),
        0,
    )
    body = await reader.readexactly(size)
    asked: dict[str, Any] = json.loads(body or b"{}")
    return asked


def _chunk(payload: str) -> bytes:
    data = f"data: {payload}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event(model: str, text: str, finish: str | None) -> bytes:
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}
    return _chunk(
        json.dumps(
            {
                "id": "cmpl-1",
                "object": "text_completion",
                "created": 0,
                "model": model,
                "choices": [choice],
            }
        )
    )


class _Proxy:
    def __init__(self, grpc_port: int) -> None:
        self.target = f"127.0.0.1:{grpc_port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (asked := await _request(reader)) is not None:
            if not asked:
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                continue
            writer.write(HEAD)
            await self.generate(asked, writer)
            writer.write(_chunk("[DONE]") + LAST_CHUNK)
        writer.close()

    async def generate(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError


class _Callbacks(_Proxy):
    """tritonclient's own streams: a thread for each, and a callback for each response."""

    async def generate(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        import numpy as np
        import tritonclient.grpc as triton  # type: ignore[import-untyped]

        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def on_response(result: Any, error: Any) -> None:
            parameters = result.get_response().parameters
            is_final = parameters["triton_final_response"].bool_param
            text = result.as_numpy("text_output")
            if text is not None and len(text):
                data = _event(body["model"], text[0].decode(), "length" if is_final else None)
                loop.call_soon_threadsafe(writer.write, data)
            if is_final:
                loop.call_soon_threadsafe(done.set)

        client = triton.InferenceServerClient(self.target)
        inputs = []
        sampling = json.dumps({"max_tokens": body["max_tokens"]})
        for name, kind, value in (
            ("text_input", "BYTES", np.array([body["prompt"].encode()], dtype=np.object_)),
            ("stream", "BOOL", np.array([True])),
            ("sampling_parameters", "BYTES", np.array([sampling.encode()], dtype=np.object_)),
        ):
            tensor = triton.InferInput(name, [1], kind)
            tensor.set_data_from_numpy(value)
            inputs.append(tensor)
        client.start_stream(on_response)
        client.async_stream_infer(body["model"], inputs, enable_empty_final_response=True)
        await done.wait()
        await loop.run_in_executor(None, client.stop_stream)


class _Aio(_Proxy):
    """The generated stubs over grpc.aio: a task for each stream."""

    stub: Any = None

    async def generate(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        import grpc
        from tritonclient.grpc import (
            service_pb2,
            service_pb2_grpc,
        )

        if self.stub is None:
            channel = grpc.aio.insecure_channel(self.target)
            self.stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = service_pb2.ModelInferRequest(model_name=body["model"])
        request.parameters["triton_enable_empty_final_response"].bool_param = True
        sampling = json.dumps({"max_tokens": body["max_tokens"]})
        for name, kind, raw in (
            ("text_input", "BYTES", _bytes(body["prompt"])),
            ("stream", "BOOL", b"\1"),
            ("sampling_parameters", "BYTES", _bytes(sampling)),
        ):
            request.inputs.add(name=name, datatype=kind, shape=[1])
            request.raw_input_contents.append(raw)

        async def requests() -> Any:
            yield request

        async for response in self.stub.ModelStreamInfer(requests()):
            answer = response.infer_response
            is_final = answer.parameters["triton_final_response"].bool_param
            if answer.raw_output_contents:
                text = answer.raw_output_contents[0][4:].decode()
                writer.write(_event(body["model"], text, "length" if is_final else None))


def _bytes(text: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(4, "little") + data


if __name__ == "__main__":
    sys.exit(main())
