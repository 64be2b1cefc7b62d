"""How fast it is, as ratios within one run on one machine. README.md holds the last figures."""
