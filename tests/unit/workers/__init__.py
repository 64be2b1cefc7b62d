"""The parts of several workers."""
