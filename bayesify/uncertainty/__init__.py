"""What a converted model is asked: predictions with their uncertainty, held draws, and the KL in training."""
