"""The scheduler with simulated agents, clients and store, on a simulated clock."""
