"""The evaluation of a candidate, image by image, and the gate that blesses or refuses it."""
