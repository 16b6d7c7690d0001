"""What can go wrong, in two meanings: trying again may help, or a person must act."""


class ClusterError(Exception):
    """Base of all errors this tool reports; the text says what to do next."""


class Transient(ClusterError):
    """The same command may work the next time."""


class ComponentFailed(Transient):
    """A component died or did not become ready in time; the text ends with its last log lines."""


class CommandFailed(Transient):
    """A program that the tool ran returned an error; the text ends with its last lines."""


class Terminal(ClusterError):
    """Nothing changes until a person acts."""


class Refused(Terminal):
    """The machine is not one the tool will work on; the text names what to do instead."""


class BuildFailed(Terminal):
    """A binary or image did not build."""
