"""Heads: the features that they read, their training, and their temperatures."""
