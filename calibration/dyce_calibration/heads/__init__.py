"""Heads: the features that they read, their training, their temperature."""
