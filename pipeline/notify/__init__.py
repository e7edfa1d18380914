"""Tells people how a run or a drop ended: by webhook, e-mail or a command of theirs."""
