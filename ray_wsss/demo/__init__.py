"""The demo: the whole pipeline on generated scenes, offline, with a picture at the end."""
