"""What the wire is told, without a wire."""
