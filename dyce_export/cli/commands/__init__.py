"""The verbs of ``dyce``, one in each module."""
