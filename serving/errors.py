"""The two ways in which Graftline says no: the user's mistake and a gate's refusal.

Everything else that is raised is a defect of the program and ends as a traceback in the log.
"""


class UserError(Exception):
    """A mistake that the user can mend: one paragraph with what is wrong, where, what to do.

    The command line prints the message and exits with code 2.
    """


class Refused(Exception):
    """A gate said no: the message is the verdict in words. The command line exits with code 3."""
