"""Reports: what people look at, as plain data. The command line prints them, pages can show them.

A report is a mapping or a frozen dataclass of numbers and texts; nothing in it is laid out.
"""
