"""The graphs: which component reads which."""
