"""Labels from prompts that a data set's annotations give: a mask for each object."""
