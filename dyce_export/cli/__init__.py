"""The command line: ``dyce`` with its verbs, and ``dyce-export``. Works in the base install."""
