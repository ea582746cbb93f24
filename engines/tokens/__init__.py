"""A prompt's exact token ids: what an engine's tokenizer makes of a request, made here.

`prompt.PromptTokens` makes them out of a model's own files, `ask` asks an engine for them. What is
rebuilt here is what vLLM 0.32 does with transformers 5; `probes` are requests by which ids made
here can be compared with an engine's before they are believed. Nothing is imported by this file,
so that only who needs `prompt` pays for tokenizers and jinja2.
"""
