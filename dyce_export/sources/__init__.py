"""Models supplied by the user (files, modules and names), made ready to be captured."""
