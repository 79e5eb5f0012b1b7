"""Searches over configurations, on records alone: no model runs."""
