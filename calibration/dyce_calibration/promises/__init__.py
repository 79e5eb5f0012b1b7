"""What may be said of a configuration: which ones get a name, and what is certified of them."""
