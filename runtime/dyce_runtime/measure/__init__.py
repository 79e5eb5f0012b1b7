"""Measuring on this machine: benchmarks, costs of pieces, energy, memory."""
