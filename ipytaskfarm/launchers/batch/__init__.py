"""Agents by batch systems: Slurm, PBS, LSF."""
