"""Files as bodies for the decoders."""
