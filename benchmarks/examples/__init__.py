"""Worked examples: what exits and savers do for real models, and next to another tool."""
