"""What a model's forward does with its weights."""
