"""From masks to the scores of an image, and from those to intervals."""
