"""Plans a run on TPUs that are not here: `i2vgen plan`."""
