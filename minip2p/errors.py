"""The two kinds of error that a user can mend. Every message names the thing, the cause and a fix, in one line."""


class CheckpointError(ValueError):
    """A file of a model is not what it should be."""


class RequestError(ValueError):
    """A call or a command asks for something that cannot be done: a size, a device, a file name, a setting."""


class PromptError(RequestError):
    """A prompt, or a word that is looked up in a prompt, cannot be used."""
