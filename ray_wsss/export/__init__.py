"""Labels in the forms that other people's tools read, one file per form.

A format gets the images one at a time (`record.ExportedImage`), writes what belongs to one, and holds
nothing of it afterwards.
"""
