"""Where examples come from: GLUE, SQuAD, a user's files, data in packages."""
