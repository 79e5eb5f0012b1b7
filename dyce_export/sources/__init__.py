"""What a user brings: files, modules and names of models, made ready to be captured."""
