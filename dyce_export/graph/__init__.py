"""The model as a graph: finding where it can be cut, and cutting it."""
