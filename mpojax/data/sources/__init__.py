"""Sources of examples: GLUE, SQuAD, a user's files, data in packages."""
