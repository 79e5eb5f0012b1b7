"""Savers: independent small models that run before the base and spare it the samples that they classify."""
