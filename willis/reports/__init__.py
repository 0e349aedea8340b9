"""The report of a study: schema, writers, grounding."""
