"""What is trained: each module is one objective for the loop."""
