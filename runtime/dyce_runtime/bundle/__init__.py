"""Bundles: what is in one, and how it is read."""
