"""The entry point of the command line: a URL is run by single.py, everything else is a command.

Nothing heavy is imported here: a process that runs one URL stays small.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from orchestrator.process import early_signals
from orchestrator.process.arguments import hide_keys_in_arguments
from orchestrator.process.standard_streams import prepare_standard_streams

_NO_MEMORY = (
    b"nodepass-orch: the process may not use enough memory (ulimit -v, MemoryMax= of its service); raise the limit\n"
)


def main(run_command: Callable[[Sequence[str]], int] | None = None) -> int:
    """Run the command line of this process. Returns the exit code.

    ``run_command`` runs a command; without it the commands of this package are available.
    """
    arguments = sys.argv[1:]
    early_signals.install(arguments)  # whatever runs longer installs its own handlers
    hide_keys_in_arguments(arguments)
    prepare_standard_streams()
    try:
        if arguments and "://" in arguments[0]:
            from orchestrator import single  # noqa: PLC0415  import only what this branch needs

            return single.main(arguments)
        if run_command is not None:
            return run_command(arguments)
        from orchestrator.commands import command_line  # noqa: PLC0415  as above

        return command_line.run(arguments)
    except KeyboardInterrupt:
        return 130
    except MemoryError:  # a sentence that needs none
        os.write(2, _NO_MEMORY)
        return 1
    except Exception as error:  # noqa: BLE001  a defect of this program: its place helps us, a traceback does not help users
        from orchestrator.process.messages import print_message  # noqa: PLC0415
        from orchestrator.supervisor.crash_reports import describe_crash  # noqa: PLC0415  as above

        print_message(describe_crash(error))
        return 1


if __name__ == "__main__":
    sys.exit(main())
