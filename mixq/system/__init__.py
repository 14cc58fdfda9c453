"""What the operating system gives: paths, memory, cores, huge pages."""
