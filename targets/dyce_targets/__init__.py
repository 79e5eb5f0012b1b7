"""The targets that come with dyce-export: engines on CPUs and on NVIDIA GPUs, and profiles of devices."""
