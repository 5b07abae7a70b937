"""Services of the operating system: files, memory, cores, process titles, and the flight recorder in shared memory."""
