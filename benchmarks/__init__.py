"""The claims of speed and quality: one script each, `python -m benchmarks.NAME --json OUT`."""
