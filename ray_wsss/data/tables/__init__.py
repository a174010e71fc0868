"""Tables of labels: their lines, and the boxes and points in them."""
