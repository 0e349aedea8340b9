"""Self-supervised pre-training of the image encoder: no labels, and the training split alone."""
