"""One module per place where things are kept."""
