"""From the files of workdirs to words and pictures, without JAX."""
