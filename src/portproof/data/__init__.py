"""Data for the models that ship: reading sound files, the speech front end, a few clips to try."""
