"""Starting the service: alone, supervised, as a Bento."""
