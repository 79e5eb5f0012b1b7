"""Measurements on this machine: benchmarks, costs of pieces, energy and memory."""
