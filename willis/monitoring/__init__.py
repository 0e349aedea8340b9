"""Drift, outcomes and alerts."""
