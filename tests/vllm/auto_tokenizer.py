"""Encode texts with the tokenizers that transformers loads; run by the vLLM environment's Python.

`python auto_tokenizer.py folder.. < texts.json`: the ids of each text with and without special
tokens, per folder, as JSON.
"""

from __future__ import annotations

import json
import sys

from transformers import AutoTokenizer


def main() -> None:
    texts = json.load(sys.stdin)
    found = []
    for folder in sys.argv[1:]:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        found.append(
            [
                [tokenizer.encode(text, add_special_tokens=special) for special in (True, False)]
                for text in texts
            ]
        )
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
