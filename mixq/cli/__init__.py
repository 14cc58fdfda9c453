"""The command line: one file per command; options, output, loading and progress are shared."""
