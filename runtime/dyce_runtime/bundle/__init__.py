"""Bundles: the folders that an export writes, their documents, and how they are read and checked."""
