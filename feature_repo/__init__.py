"""Feast's definitions; see features.py."""
