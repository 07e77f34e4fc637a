"""What a converted directory says of itself: the card, and how `conversion.json` is read."""
