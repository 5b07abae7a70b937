"""Several machines: Slurm, ssh, Dask, network namespaces."""
