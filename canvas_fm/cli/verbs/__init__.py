"""The verbs, by subject: each parses, calls one public function and prints its result."""
