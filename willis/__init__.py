"""Willis: outcome after ischemic stroke from MRI, table and report. For research, not for diagnosis."""

__version__ = "0.1.0"
