"""Patients on disk: schema, BIDS reading, intake, the synthetic cohort."""
