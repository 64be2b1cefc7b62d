"""Reading back, without I/O: what may be asked of the history, and how the answer is written."""
