"""Engines that compute in the memory of the host."""
