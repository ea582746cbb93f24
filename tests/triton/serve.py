"""A real Triton with a made-up model, for whoever wants to try the gateway on one.

Prints one line of JSON when it is up (`url`, `model`, `tokenizer`: the model's folder), and ends
on SIGTERM, on SIGINT, or when its standard input is closed.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys

from tests.engines.tokens.models import write_folder
from tests.real.server import ServerError
from tests.real.venv import BrokenError, UnavailableError
from tests.triton import environment
from tests.triton.server import Triton

MODEL = "vllm_model"
# Between two tokens of prompts that do not say it themselves.
TOKEN_DELAY_S = 0.02


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        installation = environment.ensure(lambda line: print(line, file=sys.stderr, flush=True))
    except (UnavailableError, BrokenError) as error:
        print(error, file=sys.stderr)
        return 1
    server = Triton(installation, "serve", models=[MODEL])
    slow = {"model": "made-up/model", "made_up_token_delay_s": TOKEN_DELAY_S}
    (server.repository / MODEL / "1" / "model.json").write_text(json.dumps(slow))
    with contextlib.ExitStack() as stack:
        stack.callback(server.stop)
        server.start()
        try:
            server.wait_ready()
        except ServerError as error:
            print(error, file=sys.stderr)
            return 1
        tokenizer = write_folder(server.folder / "tokenizer", "chatml")
        said = {"url": server.url, "model": MODEL, "tokenizer": str(tokenizer)}
        print(json.dumps(said), flush=True)
        sys.stdin.read()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
