"""Work shared by processes of this machine or of a cluster."""
