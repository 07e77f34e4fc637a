"""Text to token ids and back, from the file that a checkpoint ships."""
