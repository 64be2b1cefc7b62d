"""The pure modules, each in a file of the same name."""
