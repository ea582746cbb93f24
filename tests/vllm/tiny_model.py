"""Write a small language model with random weights; run by the Python of the vLLM environment.

`python tiny_model.py FOLDER [ADAPTER_FOLDER..]`: the model, and LoRA adapters for it.

The weights follow from a fixed seed, so every replica and every run answers the same under greedy
decoding. Only printable ASCII tokens can ever win: the rows of the output layer of all others are
zero, so that no answer ends before `max_tokens` by chance and none holds half a UTF-8 character.

Not here: anything that needs a network, torch or transformers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 512
HIDDEN = 64
FEED_FORWARD = 128
LAYERS = 2
HEADS = 2
KV_HEADS = 1
# The smallest head vLLM's CPU attention has a kernel for.
HEAD = 32
POSITIONS = 8192
ADAPTER_RANK = 8

PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"
# The last one is never used; the tokenizer class that transformers picks for this architecture
# would otherwise add it as an id the model has no row for.
SPECIAL = [PAD, START, END, "<|endoftext|>"]
# What the byte pairs are learned from: enough English, JSON and code for short prompts.
TEXT = """
The gateway stands between the clients and the engines, and every request passes through it.
Which city has the best weather today, and what would you wear when the sun is out?
Once upon a time a small boat went down the river until the river met the open sea.
Please count from one to twenty: one two three four five six seven eight nine ten.
Hello there! Thank you, I am well. Tell me a story about the mountain and the moon.
{"name": "get_weather", "arguments": {"city": "Oslo", "days": 3}} [true, false, null]
for line in file: print(line) # def read(path): return open(path) 0 1 2 3 4 5 6 7 8 9
system user assistant tool function content role message answer question paris france
"""
TEMPLATE = (
    "{%- for tool in tools or [] %}{{ '<|im_start|>tool\\n' + (tool | tojson) + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.content is string %}{{ message.content }}"
    "{%- else %}{%- for part in message.content or [] %}{{ part.text }}{%- endfor %}{%- endif %}"
    "{{ '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"
)


def make_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=1,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    return tokenizer


def printable_ids(tokenizer: Tokenizer) -> list[int]:
    texts = ((i, tokenizer.decode([i])) for i in range(tokenizer.get_vocab_size()))
    return [i for i, text in texts if text and all(" " <= c <= "~" for c in text)]


def make_weights(printable: list[int]) -> dict[str, np.ndarray]:
    random = np.random.default_rng(20)

    def dense(*shape: int, scale: float | None = None) -> np.ndarray:
        spread = shape[-1] ** -0.5 if scale is None else scale
        return (random.standard_normal(shape) * spread).astype(np.float32)

    ones = np.ones(HIDDEN, np.float32)
    weights = {"model.embed_tokens.weight": dense(VOCABULARY, HIDDEN, scale=1.0)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        for name, width in (("q", HEADS * HEAD), ("k", KV_HEADS * HEAD), ("v", KV_HEADS * HEAD)):
            weights[f"{at}.self_attn.{name}_proj.weight"] = dense(width, HIDDEN)
            weights[f"{at}.self_attn.{name}_proj.bias"] = dense(width, scale=0.02)
        weights[f"{at}.self_attn.o_proj.weight"] = dense(HIDDEN, HEADS * HEAD)
        weights[f"{at}.mlp.gate_proj.weight"] = dense(FEED_FORWARD, HIDDEN)
        weights[f"{at}.mlp.up_proj.weight"] = dense(FEED_FORWARD, HIDDEN)
        weights[f"{at}.mlp.down_proj.weight"] = dense(HIDDEN, FEED_FORWARD)
        weights[f"{at}.input_layernorm.weight"] = ones.copy()
        weights[f"{at}.post_attention_layernorm.weight"] = ones.copy()
    weights["model.norm.weight"] = ones.copy()
    head = np.zeros((VOCABULARY, HIDDEN), np.float32)
    # Wide enough that the winner leads clearly: a last-bit difference must not change an answer.
    head[printable] = dense(len(printable), HIDDEN, scale=0.4)
    weights["lm_head.weight"] = head
    return weights


def make_config(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": FEED_FORWARD,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD,
        "hidden_act": "silu",
        "max_position_embeddings": POSITIONS,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "eos_token_id": tokenizer.token_to_id(END),
        "pad_token_id": tokenizer.token_to_id(PAD),
    }


def write_model(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = make_config(tokenizer)
    write_json(folder / "config.json", config)
    write_json(
        folder / "generation_config.json",
        {name: config[name] for name in ("eos_token_id", "pad_token_id")},
    )
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": END,
            "pad_token": PAD,
            "model_max_length": POSITIONS,
            "clean_up_tokenization_spaces": False,
            "chat_template": TEMPLATE,
        },
    )
    weights = make_weights(printable_ids(tokenizer))
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})


def write_adapter(folder: Path, seed: int) -> None:
    """A LoRA adapter of all attention projections, strong enough to change what is answered."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    widths = {"q_proj": HEADS * HEAD, "k_proj": KV_HEADS * HEAD, "v_proj": KV_HEADS * HEAD}
    weights = {}
    for layer in range(LAYERS):
        for name, width in widths.items():
            at = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            down = random.standard_normal((ADAPTER_RANK, HIDDEN)) * HIDDEN**-0.5
            up = random.standard_normal((width, ADAPTER_RANK)) * 0.5
            weights[f"{at}.lora_A.weight"] = down.astype(np.float32)
            weights[f"{at}.lora_B.weight"] = up.astype(np.float32)
    save_file(weights, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})
    write_json(
        folder / "adapter_config.json",
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": ADAPTER_RANK,
            "lora_alpha": 2 * ADAPTER_RANK,
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": sorted(widths),
        },
    )


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1))


if __name__ == "__main__":
    write_model(Path(sys.argv[1]))
    for number, adapter in enumerate(sys.argv[2:]):
        write_adapter(Path(adapter), number)
