"""Serves: listeners, sessions, pools, the relay, discovery, fleet state and the admin API.

Two kinds of process: `control` (everything slow or singular) and `worker` (requests and nothing
else). They share `_shared` memory and talk in `messages`.
"""
