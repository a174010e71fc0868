"""Stages that take what people have added: masks made by hand."""
