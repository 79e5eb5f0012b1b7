"""Everything between a model and its configurations: data, heads, records, cost tables and search."""
