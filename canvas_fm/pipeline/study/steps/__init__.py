"""The steps of a study, each a call of one public function."""
