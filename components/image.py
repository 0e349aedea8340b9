"""The image that every component runs in on a cluster; the local runner ignores it."""

IMAGE = "willis-python:0.1.0"
