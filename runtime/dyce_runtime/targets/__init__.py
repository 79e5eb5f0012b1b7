"""Choosing a target: which are installed, which is fastest here, and whether one computes what it should."""
