"""Verification that a bundle computes what the model computes."""
