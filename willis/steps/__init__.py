"""One plain function per step: paths and a params section in, files and a summary out."""
