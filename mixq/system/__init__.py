"""The operating system's part: paths, memory, cores, huge pages."""
