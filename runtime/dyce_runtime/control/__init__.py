"""Automatic control of a session: a latency governor, and a cap on the work per sample."""
