"""Feature maps of a frozen backbone."""
