"""Triton Inference Server: what its models take and give, and OpenAI's requests in their terms.

Pure: no I/O. The gateway probes, dials and relays (`gateway/proxy/_triton`).
"""
