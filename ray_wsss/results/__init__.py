"""The figures of the results page: measurements in one folder, and tables made of what they leave there."""
