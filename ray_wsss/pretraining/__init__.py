"""Training of the SAM that ships with the package, on photographs with masks."""
