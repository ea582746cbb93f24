"""Small tokenizers and templates of the usual kinds, made on the spot and written as a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    processors,
    trainers,
)
from tokenizers import pre_tokenizers as pre

VOCABULARY = 512

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

CHATML = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- '# Tools\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'system' and loop.first %}{%- continue %}{%- endif %}
    {%- if message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        {%- if message.reasoning_content is defined and message.reasoning_content %}
            {{- '<think>\\n' + message.reasoning_content.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- message.content }}
        {%- for call in message.tool_calls or [] %}
            {{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- (call.function.arguments | tojson) + '}\\n</tool_call>' }}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

LLAMA = """\
{{- bos_token }}
{%- if tools is not none and not date_string is defined %}
    {%- set date_string = strftime_now('%d %b %Y') %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{%- if tools is not none %}{{- 'Today Date: ' + date_string + '\\n\\n' }}{%- endif %}
{{- system_message + '<|eot_id|>' }}
{%- if tools is not none %}
    {%- if not messages %}{{- raise_exception('Tools need a first user message.') }}{%- endif %}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- '\\n\\n' }}{%- endfor %}
{%- endif %}
{%- for document in documents or [] %}
    {{- '[' + document.title + '] ' + document.text + '\\n' }}
{%- endfor %}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {%- if 'tool_calls' in message %}
        {%- for tool_call in message.tool_calls %}{{- tool_call | tojson }}{%- endfor %}
    {%- elif message.content is mapping or message.content is iterable and
             message.content is not string %}
        {{- message.content | tojson }}
    {%- else %}
        {%- generation %}{{- message['content'] | trim }}{%- endgeneration %}
    {%- endif %}
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

MISTRAL = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role in ('user', 'system', 'developer') %}
        {{- '[INST] ' }}
        {%- if message.content is string %}
            {{- message.content }}
        {%- else %}
            {%- for part in message.content %}{{- part.text }}{%- endfor %}
        {%- endif %}
        {{- '[/INST]' }}
    {%- elif message.tool_calls %}
        {{- '[TOOL_CALLS] [' }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function | tojson %}
            {{- out[:-1] + ', "id": "' + tool_call.id + '"}' }}
            {{- ', ' if not loop.last else ']' + eos_token }}
        {%- endfor %}
    {%- elif message.role == 'tool' %}
        {{- '[TOOL_RESULTS] ' + message.content + '[/TOOL_RESULTS]' }}
    {%- else %}
        {%- set content = message.content %}
        {%- if content is string %}{{- content | trim }}{%- else %}
            {%- for part in content %}{{- part.text }}{%- endfor %}
        {%- endif %}
        {{- eos_token }}
    {%- endif %}
{%- endfor %}
"""

TEMPLATES = {"chatml": CHATML, "llama": LLAMA, "mistral": MISTRAL}

SPECIAL = {
    "chatml": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "llama": [
        "<|begin_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        *(f"<|reserved_special_token_{index}|>" for index in range(12)),
    ],
    "mistral": ["<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]",
                "[/TOOL_RESULTS]"],
}  # fmt: skip
NAMES = {
    "chatml": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None},
    "llama": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    "mistral": {"bos_token": "<s>", "eos_token": "</s>"},
}

# Of Qwen 2 and of Llama 3: they differ in how many digits make a piece.
_QWEN, _LLAMA = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for digits in (r"\p{N}", r"\p{N}{1,3}")
)


def make_tokenizer(kind: str) -> Tokenizer:
    """Byte-level BPE as Qwen's and Llama 3's, or pieces with blanks in front as Mistral's."""
    tokenizer = Tokenizer(models.BPE())
    if kind == "mistral":
        tokenizer.pre_tokenizer = pre.Metaspace(prepend_scheme="first", split=False)
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
        alphabet = [chr(code) for code in range(32, 127)]
    else:
        if kind == "chatml":
            tokenizer.normalizer = normalizers.NFC()
        pattern = Regex(_QWEN if kind == "chatml" else _LLAMA)
        tokenizer.pre_tokenizer = pre.Sequence(
            [
                pre.Split(pattern, behavior="isolated"),
                pre.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = sorted(pre.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=1,
        special_tokens=SPECIAL[kind],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    if kind != "chatml":
        bos = SPECIAL[kind][0]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, 0)]
        )
    # Files often hold these for training; an engine does without.
    tokenizer.enable_truncation(max_length=64)
    return tokenizer


def write_folder(folder: Path, kind: str, config: dict[str, Any] | None = None) -> Path:
    """tokenizer.json, tokenizer_config.json and a template; `config` is laid over the second."""
    folder.mkdir(parents=True, exist_ok=True)
    make_tokenizer(kind).save(str(folder / "tokenizer.json"))
    said = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 8192,
        "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATES[kind],
        **NAMES[kind],
        **(config or {}),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(said, indent=1))
    return folder
