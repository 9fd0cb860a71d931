"""From a bundle to engines for one target."""
