"""What crosses rooms: phantoms are drawn, detectors trained and scored by one command."""
