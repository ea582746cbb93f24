"""HTTP/1.x without I/O: heads, bodies and event streams as bytes in memory.

Nothing here knows a socket, a clock or an event loop; everything is resumable at any byte.
"""
