"""Trainings on machines that are not here: `i2vgen launch`."""
