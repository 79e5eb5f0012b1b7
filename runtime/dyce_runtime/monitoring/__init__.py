"""Monitoring of a session in a long-running application: counters, latency and drift."""
