"""The LIBERO benchmark (and LIBERO-PRO's perturbations of it), as openpi's client plays it; the extra `libero`."""
