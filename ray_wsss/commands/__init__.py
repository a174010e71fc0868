"""The commands of ``ray-wsss``, one dataclass each: its fields are the flags, its docstrings the help.

Importing a command imports neither torch nor Ray nor pyarrow: what does the work is imported when it runs.
"""
