"""Models of the Python backend. Each runs in a process of its own, started by the server."""
