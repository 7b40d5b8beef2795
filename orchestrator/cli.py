"""The door: one URL goes the light way, everything else to the commands. Imports nothing heavy by itself."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence


def main(run: Callable[[Sequence[str]], int] | None = None) -> int:
    """Run the command line of this process; the exit code. ``run`` stands for our commands where there are more."""
    # A Ctrl-C while modules are still being imported ends the process quietly; what runs longer sets its own handlers.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a text stream of the interpreter
    arguments = sys.argv[1:]
    try:
        if arguments and "://" in arguments[0]:
            from orchestrator import single  # noqa: PLC0415  each way imports only what it needs

            return single.main(arguments)
        from orchestrator.commands import local as commands  # noqa: PLC0415  as above

        return (run or commands.run)(arguments)
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001  a defect of ours: its place helps us, a traceback nobody
        from orchestrator.process.process import say  # noqa: PLC0415
        from orchestrator.supervisor.defects import describe_defect  # noqa: PLC0415  as above

        say(describe_defect(error))
        return 1


if __name__ == "__main__":
    sys.exit(main())
