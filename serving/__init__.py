"""The endpoint: Ray Serve wiring around `willis.casework` and `willis.inference`; start with app.py."""
