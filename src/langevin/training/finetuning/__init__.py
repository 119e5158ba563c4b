"""Fine-tuning of a loaded model, through the loop that trains everything: all weights, LoRA, DreamBooth, a new word."""
