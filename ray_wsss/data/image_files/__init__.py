"""Image files of all kinds: which files are images, what Pillow alone can't read, and which look alike."""
