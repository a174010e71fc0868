"""Label images larger than a tile: CAMs of the whole image, masks of its tiles, one label."""
