"""One printable page of a brain or a study: counts, densities, planes, groups, provenance."""
