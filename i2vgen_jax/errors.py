"""The one exception for input that a person can put right."""


class InputError(ValueError):
  """Something given from outside is unusable: a file, a size, a key, a text.

  The message is one line that says what is wrong, where, and what to do.
  Launchers print it and exit with a non-zero status.
  """
