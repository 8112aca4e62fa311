"""Rules: what they say, which apply, what they mean; and the file that they are in."""
