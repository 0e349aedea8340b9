"""What a prediction is worth, beside its controls and its ceiling."""
