"""Pictures: files and bytes to tensors in [-1, 1] and back, with their metadata."""
