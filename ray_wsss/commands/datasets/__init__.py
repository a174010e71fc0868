"""Further commands that make data sets: from containers of images, and from a data set."""
