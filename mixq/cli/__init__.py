"""The command line: one file a command; what they share is options, output, loading and progress."""
