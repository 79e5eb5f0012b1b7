"""Worked examples: exits and savers on real models, and a comparison with another tool."""
