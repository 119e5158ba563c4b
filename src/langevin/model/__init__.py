"""What a checkpoint becomes: networks with the conventions that give their numbers a meaning."""
