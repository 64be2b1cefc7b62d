"""The whole server from outside, from bytes on a socket to rows and frames, with clients of others."""
