"""Read images and labels from folders and files, match the labels with a model's classes, and preprocess images."""
