"""The model as a graph: where it can be cut, and how it is."""
