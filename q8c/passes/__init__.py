"""Graph to graph: one pass per file, in the order `pipeline.py` states."""
