"""HTTP and WebSocket: bytes in, status out. No SQL here, and no decision about when something is stored."""
