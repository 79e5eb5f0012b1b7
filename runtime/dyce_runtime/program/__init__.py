"""The program of a bundle, the part of it that a configuration needs, and the rule by which samples exit."""
