"""Further commands that make data sets: from containers of images, other tools, and a data set."""
