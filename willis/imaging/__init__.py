"""Volumes on one grid, and what is measured from them."""
