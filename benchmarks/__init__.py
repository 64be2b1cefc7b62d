"""Measures the server's speed, as ratios within one run on one machine. README.md holds the last figures."""
