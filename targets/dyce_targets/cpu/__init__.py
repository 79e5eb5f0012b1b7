"""Engines on CPUs, which compute in the memory of the host."""
