"""Execution of bundles: sessions, plans, routing, and the interface to engines."""
