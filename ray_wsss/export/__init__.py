"""Writers for the label formats of other tools, one module per format.

A format gets one image at a time (`export.record.ExportedImage`), writes its files and entries, and does not
keep it in memory.
"""
