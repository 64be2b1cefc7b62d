"""The whole server, from outside: bytes on a socket to rows and frames, through clients that we did not write."""
