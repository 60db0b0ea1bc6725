"""The two ways to be wrong: a file that cannot be loaded, a request that cannot be met. One line each."""


class CheckpointError(ValueError):
    """A file of weights, or one beside it, is not what it should be; the message names file, cause and fix."""


class PromptError(ValueError):
    """A prompt, a word of it, or a setting of a call cannot be used; the message names thing, cause and fix."""
