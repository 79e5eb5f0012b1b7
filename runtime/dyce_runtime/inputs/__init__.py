"""From pictures, folders and files to what a network takes, with labels that mean what it means by them."""
