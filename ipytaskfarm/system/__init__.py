"""What the operating system gives: files, memory, cores, process titles, and the flight recorder in shared memory."""
