"""One thin KFP component per step: its body is one import and one call, and a summary as metadata."""
