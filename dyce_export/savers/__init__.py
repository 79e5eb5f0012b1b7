"""Savers: independent small models that run before the base."""
